"""What a retriever may read of keys and queries: what it declares, checked, and made only when it is read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from retroflow.errors import InvalidTextsError, InvalidVectorsError, RetrieverError
from retroflow.protocols import Capabilities, KeySource, Neighbours, Queries
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.retrieval.keys import Keys, LazyQueries

VECTORS = np.eye(3, dtype=np.float32)
TEXTS = ["a cat", "a dog", "a bird"]


class Reader:
    """Notes what it reads of keys and queries; finds key 0 for everything."""

    def __init__(self, queried_by: Any, reads: Sequence[str]) -> None:
        self.capabilities = Capabilities(metric="own", queried_by=queried_by)
        self._reads = reads
        self.read: list[Any] = []

    def build(self, keys: KeySource) -> None:
        self.read += [getattr(keys, part)[0:2] for part in self._reads]

    def search(self, queries: Queries, k: int) -> Neighbours:
        self.read += [getattr(queries, part) for part in self._reads]
        ids = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids[:, 0], scores[:, 0] = 0, 1.0
        return Neighbours(ids, scores)

    def save(self, folder: object) -> None: ...

    def load(self, folder: object) -> None: ...

    def fingerprint(self) -> dict[str, object]:
        return {}


def checked(queried_by: str, *reads: str) -> tuple[CheckedRetriever, list[Any]]:
    reader = Reader(queried_by, reads)
    return CheckedRetriever(reader, owner="theirs (package 1.0)"), reader.read


def not_made() -> Any:
    raise AssertionError("nobody reads it, and it is made")


def test_only_what_is_declared_is_made() -> None:
    words, read = checked("texts", "texts")
    words.build(Keys(texts=TEXTS))
    answer = words.search(LazyQueries(3, vectors=not_made, texts=lambda: TEXTS), 2)
    assert read == [TEXTS[:2], TEXTS] and answer.ids.shape == (3, 2)
    assert (len(words), words.dimension) == (3, None)
    dense, read = checked("vectors", "vectors")
    dense.build(Keys(VECTORS))
    dense.search(LazyQueries(3, vectors=lambda: VECTORS, texts=not_made), 1)
    assert [len(each) for each in read] == [2, 3] and dense.dimension == 3


def test_a_retriever_of_both_reads_both() -> None:
    both, read = checked("both", "vectors", "texts")
    both.build(Keys(VECTORS, TEXTS))
    both.search(Keys(VECTORS, TEXTS), 1)
    assert read[1] == TEXTS[:2] and read[3] == TEXTS


def test_queries_can_be_taken_in_part() -> None:
    queries = LazyQueries(3, vectors=lambda: VECTORS, texts=lambda: TEXTS).part(np.array([2, 0]))
    assert queries.texts == ["a bird", "a cat"] and np.array_equal(queries.vectors, VECTORS[[2, 0]])
    assert len(queries) == 2


def test_what_a_retriever_reads_alone_need_not_be_wrapped() -> None:
    words, read = checked("texts", "texts")
    words.build(TEXTS)
    words.search(TEXTS[:1], 1)
    assert read == [TEXTS[:2], TEXTS[:1]]


@pytest.mark.parametrize(("queried_by", "reads"), [("vectors", "texts"), ("texts", "vectors")])
def test_what_is_read_must_be_declared(queried_by: str, reads: str) -> None:
    retriever, _ = checked(queried_by, reads)
    message = f'theirs .*it reads keys.{reads}, and its capabilities declare queried_by="{queried_by}"'
    with pytest.raises(RetrieverError, match=message):
        retriever.build(Keys(VECTORS, TEXTS))


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ("a cat", "queries must be texts, a list of str, not str"),
        (VECTORS, "queries must be texts, a list of str, not ndarray"),
        (None, "queries must be texts, a list of str, not NoneType"),
        (["a cat", 1], "queries: text 1 is a int, not a str"),
        ((text for text in TEXTS), "queries must be texts, a list of str, not generator"),
    ],
)
def test_queries_that_are_no_texts_are_refused(queries: object, message: str) -> None:
    words, _ = checked("texts", "texts")
    words.build(TEXTS)
    with pytest.raises(InvalidTextsError, match=message):
        words.search(queries, 1)


def test_keys_without_what_is_read_are_refused() -> None:
    words, dense = checked("texts", "texts")[0], checked("vectors", "vectors")[0]
    with pytest.raises(InvalidTextsError, match="keys must be texts, a list of str, not Keys"):
        words.build(Keys(VECTORS))
    with pytest.raises(InvalidVectorsError, match="vectors must be a numpy array or torch tensor, not NoneType"):
        dense.build(Keys(texts=TEXTS))


def test_as_many_texts_as_vectors() -> None:
    both, _ = checked("both", "texts")
    with pytest.raises(InvalidVectorsError, match="3 vectors and 2 texts; give as many of each"):
        both.build(Keys(VECTORS, TEXTS[:2]))


def test_texts_are_checked_as_they_are_read() -> None:
    class Fewer(list[str]):
        def __getitem__(self, rows: Any) -> Any:
            return super().__getitem__(rows)[:1]

    words, _ = checked("texts", "texts")
    with pytest.raises(InvalidTextsError, match=r"texts\[0:2\] holds 1 texts, not 2"):
        words.build(Fewer(TEXTS))
    with pytest.raises(InvalidTextsError, match=r"texts\[0:2\]: text 1 is a bytes, not a str"):
        words.build(["a", b"b", "c"])


def test_an_empty_index_of_texts_is_saved_and_opened(tmp_path: Any) -> None:
    words, _ = checked("texts", "texts")
    words.build([])
    words.save(tmp_path / "index")
    again, _ = checked("texts", "texts")
    again.load(tmp_path / "index")
    assert (again.search(["a"], 2).ids == -1).all() and len(again) == 0
