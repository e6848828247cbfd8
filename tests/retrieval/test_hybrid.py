"""Two retrievers together: fused ranks and reranked candidates, by hand."""

from pathlib import Path

import numpy as np
import pytest

from retroflow.errors import DamagedDataError, RetrieverError, UsageError
from retroflow.protocols import Capabilities, Float32Array, Int64Array, KeySource, Neighbours, Queries
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.retrieval.hybrid import HybridRetriever, HybridSearch, RerankRetriever
from retroflow.retrieval.keys import Keys

QUERIES = Keys(np.ones((2, 3), np.float32), ["a", "b"])
KEYS = Keys(np.ones((9, 3), np.float16), list("abcdefghi"))


class Ranking:
    """Answers with ids that were fixed before, best first, and scores a key with its id."""

    def __init__(self, ids: list[list[int]], reads: str) -> None:
        self.ids = np.array(ids)
        self.capabilities = Capabilities(metric="own", queried_by=reads, add=True, remove=True)  # type: ignore[arg-type]
        self.changes: list[object] = []

    def build(self, keys: KeySource) -> None:
        self.changes.append(len(keys))

    add = build

    def remove(self, ids: Int64Array) -> None:
        self.changes.append(ids.tolist())

    def search(self, queries: Queries, k: int) -> Neighbours:
        ids = np.full((len(queries), k), -1, np.int64)
        ids[:, : self.ids.shape[1]] = self.ids[:, :k]
        return Neighbours(ids, np.where(ids < 0, -np.inf, -np.arange(k)).astype(np.float32))

    def score(self, queries: Queries, ids: Int64Array) -> Float32Array:
        assert len(queries.texts) == len(ids)
        return np.where(ids < 0, -np.inf, ids // 2).astype(np.float32)

    def save(self, folder: Path) -> None:
        (folder / "ids").write_text(str(self.ids.tolist()))

    def load(self, folder: Path) -> None:
        (folder / "ids").read_text()

    def fingerprint(self) -> dict[str, object]:
        return {"reads": self.capabilities.queried_by}


def made(kind: type, dense: list[list[int]], words: list[list[int]], candidates: int = 4) -> CheckedRetriever:
    parts = {"dense": Ranking(dense, "vectors"), "words": Ranking(words, "texts")}
    checked = {name: CheckedRetriever(part, owner=name) for name, part in parts.items()}
    retriever = CheckedRetriever(kind(**checked, search=HybridSearch(candidates=candidates)), owner="both (acme 1.0)")
    retriever.build(KEYS)
    return retriever


def test_ranks_are_fused_by_their_reciprocals_and_equal_sums_by_id() -> None:
    retriever = made(HybridRetriever, [[3, 1, 5, 0], [2, 7, -1, -1]], [[5, 8, 1, 4], [-1, -1, -1, -1]])
    ids, scores = retriever.search(QUERIES, 4)
    assert ids.tolist() == [[5, 1, 3, 8], [2, 7, -1, -1]]
    expected = [[1 / 63 + 1 / 61, 1 / 62 + 1 / 63, 1 / 61, 1 / 62], [1 / 61, 1 / 62]]
    assert np.allclose(scores[0], expected[0]) and np.allclose(scores[1, :2], expected[1])
    tied = made(HybridRetriever, [[6, 4], [1, 0]], [[4, 6], [0, 1]])
    assert tied.search(QUERIES, 2).ids.tolist() == [[4, 6], [0, 1]]


def test_candidates_are_ranked_by_words_and_equal_scores_stay_in_order() -> None:
    retriever = made(RerankRetriever, [[2, 0, 3, 5, 8], [8, -1, -1, -1, -1]], [[1], [1]])
    ids, scores = retriever.search(QUERIES, 3)
    assert ids.tolist() == [[5, 2, 3], [8, -1, -1]], "8 is no candidate: it is the fifth of four"
    assert scores.tolist() == [[2.0, 1.0, 1.0], [4.0, -np.inf, -np.inf]]
    assert retriever.search(QUERIES, 5).ids.tolist()[0] == [8, 5, 2, 3, 0], "as many candidates as neighbours"


def test_both_are_saved_loaded_and_changed_together(tmp_path: Path) -> None:
    dense, words = Ranking([[2], [0]], "vectors"), Ranking([[0], [2]], "texts")

    def new() -> CheckedRetriever:
        parts = {"dense": CheckedRetriever(dense, owner="d"), "words": CheckedRetriever(words, owner="w")}
        return CheckedRetriever(HybridRetriever(**parts), owner="both (acme 1.0)")

    retriever = new()
    retriever.build(KEYS)
    retriever.add(KEYS[:2])
    retriever.remove([4])
    assert dense.changes == words.changes == [9, 2, [4]]
    retriever.save(tmp_path / "index")
    opened = new()
    opened.load(tmp_path / "index")
    assert (len(opened), opened.next_id, opened.dimension) == (10, 11, 3)
    assert opened.search(QUERIES, 2).ids.tolist() == [[0, 2], [0, 2]]
    assert opened.fingerprint() == {"dense": {"reads": "vectors"}, "words": {"reads": "texts"}}
    assert opened.capabilities.queried_by == "both" and not opened.capabilities.exact
    next((tmp_path / "index").rglob("words/retriever.json")).unlink()
    with pytest.raises(DamagedDataError, match="not, byte by byte, those that both"):
        new().load(tmp_path / "index")


def test_what_cannot_be_put_together_says_so() -> None:
    with pytest.raises(UsageError, match=r"dense and words must be retrievers; retroflow\.retriever"):
        HybridRetriever()

    class WithoutScores(Ranking):
        score = None

    parts = (Ranking([[1], [1]], "vectors"), WithoutScores([[1], [1]], "texts"))
    dense, words = (CheckedRetriever(part, owner=f"{part.capabilities.queried_by} (acme 1.0)") for part in parts)
    with pytest.raises(UsageError, match=r"retriever\.words: texts \(acme 1\.0\) cannot score given keys"):
        RerankRetriever(dense=dense, words=words)
    words.build(KEYS)
    with pytest.raises(RetrieverError, match="cannot score given keys"):
        words.score(QUERIES, np.zeros((2, 1), np.int64))
