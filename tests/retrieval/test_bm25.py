"""BM25 against its formula written as a loop, and where the library would go its own ways."""

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from retroflow.errors import DamagedDataError, RetroflowError
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.retrieval.keys import Keys

pytest.importorskip("bm25s")

from retroflow.retrieval.bm25 import Bm25Build, Bm25Retriever, words_of_text

draw = np.random.default_rng(0)
TEXTS = [" ".join(f"w{word}" for word in draw.zipf(1.5, size=draw.integers(1, 40)) % 200) for _ in range(300)]
QUERIES = [" ".join(f"w{word}" for word in draw.zipf(1.5, size=12) % 220) for _ in range(20)]


def built(texts: list[str], **options: float) -> CheckedRetriever:
    retriever = CheckedRetriever(Bm25Retriever(build=Bm25Build(**options)), owner="bm25")
    retriever.build(texts)
    return retriever


def by_formula(query: str, texts: list[str], k1: float, b: float) -> np.ndarray:
    """Lucene's BM25: sum over the query's words of log(1 + (N - n + 0.5) / (n + 0.5)) f / (f + k1 (1 - b + b l / L))."""
    counts = [Counter(words_of_text(text)) for text in texts]
    mean = sum(count.total() for count in counts) / len(texts)
    scores = np.zeros(len(texts))
    for word in words_of_text(query):
        having = sum(word in count for count in counts)
        weight = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        for row, count in [(row, count) for row, count in enumerate(counts) if count[word]]:
            scores[row] += weight * count[word] / (count[word] + k1 * (1 - b + b * count.total() / mean))
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.0), (0.0, 1.0)])
def test_scores_are_those_of_the_formula_and_the_best_come_first(k1: float, b: float) -> None:
    ids, scores = built(TEXTS, k1=k1, b=b).search(QUERIES, 300)
    for row, query in enumerate(QUERIES):
        expected = by_formula(query, TEXTS, k1, b)
        found = ids[row][ids[row] >= 0]
        assert set(found.tolist()) == set(np.flatnonzero(expected > 0).tolist())
        assert np.allclose(scores[row, : len(found)], expected[found], rtol=1e-4)


def test_fewer_are_the_beginning_of_all_and_equal_scores_are_ordered_by_id() -> None:
    retriever = built(["a b", "a c", "a b", "d", "a b"])
    assert retriever.search(["b"], 9).ids[0].tolist() == [0, 2, 4, -1, -1, -1, -1, -1, -1]
    assert retriever.search(["b"], 2).ids[0].tolist() == [0, 2]
    many, all_of_them = built(TEXTS), built(TEXTS).search(QUERIES, 300)
    for k in (1, 7, 299):
        few = many.search(QUERIES, k)
        assert np.array_equal(few.ids, all_of_them.ids[:, :k]) and np.array_equal(few.scores, all_of_them.scores[:, :k])


def test_texts_without_a_word_are_found_by_nothing_and_find_nothing() -> None:
    retriever = built(["", "?!", "a word"])
    assert retriever.search(["word", "", "...", "another"], 2).ids.tolist() == [[2, -1], [-1, -1], [-1, -1], [-1, -1]]
    assert (built(["", "?!"]).search(["word"], 2).ids == -1).all()


def test_words_are_letters_digits_and_underscores_of_any_script_in_lower_case() -> None:
    assert words_of_text("Größe=max_len(x2) 文字, don't") == ["größe", "max_len", "x2", "文字", "don", "t"]


def test_it_travels_with_its_folder_and_damage_is_found(tmp_path: Path) -> None:
    retriever = built(TEXTS)
    retriever.save(tmp_path / "index")
    opened = CheckedRetriever(Bm25Retriever(), owner="bm25")
    opened.load((tmp_path / "index").rename(tmp_path / "moved"))
    assert np.array_equal(opened.search(QUERIES, 5).ids, retriever.search(QUERIES, 5).ids)
    with pytest.raises(DamagedDataError, match="bm25: the index in .* cannot be read"):
        Bm25Retriever().load(tmp_path)


def test_a_build_reads_texts_alone_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Texts(list[str]):
        def __getitem__(self, rows: object) -> object:
            assert isinstance(rows, slice) and len(range(*rows.indices(len(self)))) <= 16
            return super().__getitem__(rows)

    monkeypatch.setattr("retroflow.retrieval.bm25.READ_TEXTS", 16)
    retriever = Bm25Retriever()
    retriever.build(Keys(texts=Texts(TEXTS)))
    assert np.array_equal(retriever.search(Keys(texts=QUERIES), 5).ids, built(TEXTS).search(QUERIES, 5).ids)


@pytest.mark.parametrize(
    ("options", "message"), [({"k1": -1.0}, "retriever.build.k1"), ({"b": 1.5}, "retriever.build.b")]
)
def test_options_are_checked(options: dict[str, float], message: str) -> None:
    with pytest.raises(RetroflowError, match=message):
        Bm25Build(**options)


def test_given_keys_are_scored_as_a_search_scores_them() -> None:
    retriever = built(["red fox", "blue fox", "green bird", "red red sun"])
    queries = ["red fox", "bird", "nothing"]
    found = retriever.search(queries, 4)
    assert np.array_equal(retriever.score(queries, found.ids), found.scores)
    scores = retriever.score(queries, np.array([[3, -1], [0, 2], [1, 1]]))
    assert scores.dtype == np.float32 and np.isneginf(scores[0, 1])
    assert scores[0, 0] > 0 and scores[1, 0] == 0 < scores[1, 1] and (scores[2] == 0).all()


def test_jax_is_not_run(tmp_path):
    # bm25s runs jax where it is installed, which reserves three quarters of a GPU's memory.
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("print('run')")
    (tmp_path / "jax" / "lax.py").write_text("top_k = print")
    code = "import retroflow.retrieval.bm25, jax; print(jax.__file__)"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["run", str(tmp_path / "jax" / "__init__.py")]
