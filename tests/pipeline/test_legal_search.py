"""Neighbours outside the own document, against a loop-written reference."""

import numpy as np
import pytest

from retroflow.pipeline import legal_search
from retroflow.pipeline.legal_search import BY_RETRIEVER, LARGE_DOCUMENT, RAN_OUT, ChunkQueries, Found, LegalSearch
from retroflow.protocols import Capabilities, Float32Array, Neighbours
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.retrieval.keys import LazyQueries


class LoopRetriever:
    """Exact search that may be lazy: it never gives more than `most` candidates."""

    def __init__(self, metric: str = "l2", most: int = 10**9, *, exact: bool = False) -> None:
        self.capabilities = Capabilities(metric=metric, exact=exact)  # type: ignore[arg-type]
        self.most = most
        self.fetched: list[tuple[int, int]] = []

    def build(self, keys) -> None:
        self.vectors = np.asarray(keys.vectors[0 : len(keys)], np.float32)

    def search(self, queries, k: int) -> Neighbours:
        self.fetched.append((len(queries), k))
        ids = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for row, query in enumerate(queries.vectors):
            all_scores = score(query, self.vectors, self.capabilities.metric)
            order = np.argsort(-all_scores, kind="stable")[: min(k, self.most)]
            ids[row, : len(order)], scores[row, : len(order)] = order, all_scores[order]
        return Neighbours(ids, scores)

    def save(self, folder) -> None: ...

    def load(self, folder) -> None: ...

    def fingerprint(self) -> dict[str, object]:
        return {}


def chunk_queries(vectors: Float32Array, excluded: np.ndarray | None) -> ChunkQueries:
    return ChunkQueries(LazyQueries(len(vectors), vectors=lambda: vectors, texts=list), excluded)


def score(query: np.ndarray, vectors: np.ndarray, metric: str) -> np.ndarray:
    return vectors @ query if metric == "inner_product" else -((vectors - query) ** 2).sum(axis=1)


def wanted(queries: ChunkQueries, vectors: np.ndarray, keys: np.ndarray, k: int, metric: str) -> np.ndarray:
    best = np.full((len(queries.vectors), k), -np.inf, np.float32)
    for row, query in enumerate(queries.vectors):
        scores = score(query, vectors, metric)
        if queries.excluded is not None:
            scores = scores[keys != queries.excluded[row]]
        scores = np.sort(scores)[::-1][:k]
        best[row, : len(scores)] = scores
    return best


@pytest.fixture
def clustered() -> tuple[np.ndarray, np.ndarray]:
    """300 vectors in 12 documents of 25 that lie close together: the nearest ones are all illegal."""
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(12), 25)
    vectors = rng.normal(size=(12, 8))[documents] + 0.01 * rng.normal(size=(300, 8))
    return vectors.astype(np.float32), documents


def search_over(retriever: LoopRetriever, vectors: np.ndarray, keys: np.ndarray | None, overfetch: int) -> LegalSearch:
    checked = CheckedRetriever(retriever, owner="loop")
    checked.build(vectors)
    return LegalSearch(checked, vectors, keys, overfetch)


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
@pytest.mark.parametrize("most", [10**9, 26, 1])
def test_neighbours_are_the_best_of_other_documents_however_deep(clustered, metric: str, most: int) -> None:
    vectors, documents = clustered
    retriever = LoopRetriever(metric, most)
    search = search_over(retriever, vectors, documents, overfetch=4)
    queries = chunk_queries(vectors[::3], documents[::3])
    found = search.search(queries, 3)
    np.testing.assert_allclose(found.scores, wanted(queries, vectors, documents, 3, metric), rtol=1e-4, atol=1e-4)
    assert (documents[found.ids] != queries.excluded[:, None]).all()
    assert set(found.by.tolist()) <= {BY_RETRIEVER, RAN_OUT}
    assert (found.by == RAN_OUT).any() == (most < 100)


def test_only_starved_queries_are_searched_again_with_twice_the_candidates(clustered) -> None:
    vectors, documents = clustered
    documents = documents + 1000
    documents[:150] = np.arange(150)  # half the queries find others at once
    retriever = LoopRetriever()
    search_over(retriever, vectors, documents, overfetch=8).search(chunk_queries(vectors, documents), 2)
    assert retriever.fetched[0] == (300, 8)
    assert retriever.fetched[1] == (150, 16)
    assert retriever.fetched[2][1] == 32


def test_missing_neighbours_are_minus_one_when_the_database_is_exhausted() -> None:
    vectors, documents = np.eye(4, dtype=np.float32), np.array([0, 0, 0, 1])
    found = search_over(LoopRetriever(), vectors, documents, 2).search(chunk_queries(vectors, documents), 2)
    assert found.ids.tolist() == [[3, -1], [3, -1], [3, -1], [0, 1]]
    assert np.isneginf(found.scores[:3, 1]).all()


def test_without_document_exclusion_only_the_chunk_itself_is_left_out() -> None:
    vectors = np.ones((3, 2), np.float32)
    found = search_over(LoopRetriever(), vectors, None, 1).search(chunk_queries(vectors, np.arange(3)), 2)
    assert [sorted(row) for row in found.ids.tolist()] == [[1, 2], [0, 2], [0, 1]]


def test_validation_queries_may_have_any_chunk(clustered) -> None:
    vectors, documents = clustered
    retriever = LoopRetriever()
    found = search_over(retriever, vectors, documents, 16).search(chunk_queries(vectors[:5], None), 2)
    assert found.ids[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert retriever.fetched == [(5, 2)]


def test_exact_search_in_small_blocks_is_the_same(clustered, monkeypatch) -> None:
    vectors, documents = clustered
    search, queries = search_over(LoopRetriever(), vectors, documents, 4), chunk_queries(vectors, documents)
    whole = search.exact(queries, 3)
    monkeypatch.setattr(legal_search, "EXACT_VECTORS", 2)
    monkeypatch.setattr(legal_search, "EXACT_QUERIES", 7)
    monkeypatch.setattr(legal_search, "MAX_CANDIDATES", 50)
    monkeypatch.setattr(legal_search, "LEAST_GROUP", 3)
    np.testing.assert_allclose(search.exact(queries, 3).scores, whole.scores, atol=1e-5)
    np.testing.assert_allclose(search.search(queries, 3).scores, whole.scores, atol=1e-5)


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
@pytest.mark.parametrize("most", [10**9, 20])
@pytest.mark.parametrize("limits", [(40, 30, 0), (40, 1000, 16), (40, 50, 16)])
def test_a_document_that_is_most_of_the_corpus_is_not_compared_with_itself(
    metric: str, most: int, limits: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    max_fetch, few_vectors, first_fetches = limits
    monkeypatch.setattr(legal_search, "MAX_FETCH", max_fetch)
    monkeypatch.setattr(legal_search, "FEW_VECTORS", few_vectors)
    monkeypatch.setattr(legal_search, "FIRST_FETCHES", first_fetches)
    monkeypatch.setattr(legal_search, "EXACT_VECTORS", 16)
    rng = np.random.default_rng(1)
    documents = np.repeat(np.arange(9), [10, 10, 200, 10, 10, 10, 60, 10, 10])
    vectors = (rng.normal(size=(9, 8))[documents] + 0.1 * rng.normal(size=(330, 8))).astype(np.float32)
    read = []

    class Watched:
        shape = vectors.shape

        def __len__(self) -> int:
            return len(vectors)

        def __getitem__(self, rows: slice, /) -> np.ndarray:
            read.append(rows)
            return vectors[rows]

    retriever = LoopRetriever(metric, most)
    checked = CheckedRetriever(retriever, owner="loop")
    checked.build(vectors)
    search = LegalSearch(checked, Watched(), documents, overfetch=4)
    queries = chunk_queries(vectors, documents)
    found = search.search(queries, 3)
    np.testing.assert_allclose(found.scores, wanted(queries, vectors, documents, 3, metric), rtol=1e-4, atol=1e-4)
    assert (documents[found.ids] != documents[:, None]).all()
    assert max(fetch for _, fetch in retriever.fetched) <= max(max_fetch, 4)
    read.clear()
    search.exact(queries.part(np.flatnonzero(documents == 2)), 3)
    assert sum(rows.stop - rows.start for rows in read) == 130


def test_a_document_larger_than_all_others_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legal_search, "MAX_FETCH", 40)
    vectors = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    documents = np.repeat([0, 1], [30, 70])
    retriever = LoopRetriever()
    found = search_over(retriever, vectors, documents, 4).search(chunk_queries(vectors[30:], documents[30:]), 2)
    assert retriever.fetched == [] and (found.by == LARGE_DOCUMENT).all() and (found.ids < 30).all()


def judged(retriever: LoopRetriever) -> legal_search.Judgement:
    """A retriever over random vectors of documents of two, judged on all of them at k = 2."""
    vectors = np.random.default_rng(3).normal(size=(200, 16)).astype(np.float32)
    search = search_over(retriever, vectors, np.arange(200) // 2, 4)
    queries = chunk_queries(vectors, np.arange(200) // 2)
    return search.judge(queries, search.own_answer(queries, 2))


class Misreporting(LoopRetriever):
    """Finds the right ids, or the first ones, and reports what it likes."""

    def __init__(self, scores, first: bool = False, metric: str = "l2") -> None:
        super().__init__(metric)
        self.scores, self.first = scores, first

    def search(self, queries, k: int) -> Neighbours:
        found = super().search(queries, k)
        ids = np.tile(np.arange(k), (len(queries), 1)) if self.first else found.ids
        return Neighbours(ids, self.scores(found.scores).astype(np.float32))


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
def test_the_retriever_is_judged_by_what_it_finds_itself(metric: str) -> None:
    assert judged(LoopRetriever(metric)) == (1.0, 200, 0.0)
    assert judged(LoopRetriever(metric, most=0)) == (0.0, 200, 0.0)
    half = judged(LoopRetriever(metric, most=2)).recall
    assert half is not None and 0.0 < half < 0.6
    first = judged(Misreporting(lambda scores: scores, first=True, metric=metric)).recall
    assert first is not None and first < 0.1


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
def test_scores_are_compared_with_the_true_similarity(metric: str) -> None:
    rng = np.random.default_rng(0)

    def quantised(scores: np.ndarray) -> np.ndarray:
        return -np.sort(-(scores + rng.normal(scale=1.0, size=scores.shape)), axis=1)

    # Two vectors are 32 apart in squared distance, and about 16 long in squared length.
    assert 0.0 < judged(Misreporting(quantised, metric=metric)).score_error < 0.15
    invented = Misreporting(lambda scores: np.broadcast_to(-np.arange(scores.shape[1]), scores.shape), metric=metric)
    assert judged(invented).score_error > 0.3
    assert judged(Misreporting(lambda scores: np.zeros_like(scores), metric=metric)).score_error > 0.3


def test_chunks_whose_own_document_is_too_large_do_not_count_against_the_retriever(monkeypatch) -> None:
    monkeypatch.setattr(legal_search, "MAX_FETCH", 40)
    vectors = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    documents = np.repeat(np.arange(16), [70, *[2] * 15])
    search = search_over(LoopRetriever(), vectors, documents, 4)
    queries = chunk_queries(vectors, documents)
    own = search.own_answer(queries, 2)
    assert (own.by == LARGE_DOCUMENT).sum() == 70
    assert search.judge(queries, own) == (1.0, 30, 0.0)
    large = queries.part(np.arange(70))
    assert search.judge(large, search.own_answer(large, 2)).recall is None


def test_recall_counts_what_was_not_found_and_takes_equal_copies() -> None:
    vectors = np.array([[0, 0], [0, 1], [0, 1], [5, 5]], np.float32)
    search = search_over(LoopRetriever(), vectors, None, 4)
    queries = chunk_queries(vectors[:1], np.array([0]))

    def recall(*ids: int) -> float | None:
        scores = np.zeros((1, len(ids)), np.float32)
        return search.judge(queries, Found(np.array([ids], np.int64), scores, np.zeros(1, np.uint8))).recall

    assert recall(1) == recall(2) == 1.0
    assert recall(3) == recall(-1) == 0.0
    assert recall(1, -1) == 0.5


def own_scores_over(vectors: np.ndarray, documents: np.ndarray, **options: object) -> tuple[LegalSearch, LoopRetriever]:
    """A search whose scores only the retriever can compute: it has no vectors to compute them from."""
    retriever = LoopRetriever("own", **options)  # type: ignore[arg-type]
    checked = CheckedRetriever(retriever, owner="loop")
    checked.build(vectors)
    return LegalSearch(checked, None, documents, overfetch=4), retriever


def test_where_scores_are_its_own_the_retriever_is_asked_for_more_until_it_has_none(clustered, monkeypatch) -> None:
    vectors, documents = clustered
    monkeypatch.setattr(legal_search, "MAX_FETCH", 8)  # beyond which vectors would be compared
    search, retriever = own_scores_over(vectors, documents, exact=True)
    queries = chunk_queries(vectors[::3], documents[::3])
    found = search.search(queries, 3)
    np.testing.assert_allclose(found.scores, wanted(queries, vectors, documents, 3, "own"), rtol=1e-4)
    assert (found.by == BY_RETRIEVER).all()
    assert [fetch for _, fetch in retriever.fetched] == [4, 8, 16, 32]
    judgement = search.judge(queries, found)
    assert (judgement.recall, judgement.queries, judgement.score_error) == (1.0, 100, 0.0)


def test_own_scores_are_judged_by_the_ranking_of_all_and_only_if_it_is_declared_exact(clustered, monkeypatch) -> None:
    vectors, documents = clustered
    queries = chunk_queries(vectors, documents)
    search, _ = own_scores_over(vectors, documents, exact=True)
    lost = search.own_answer(queries, 2)
    lost.ids[:, 1], lost.scores[:, 1] = -1, -np.inf
    assert search.judge(queries, lost).recall == 0.5
    monkeypatch.setattr(legal_search, "MOST_RANKED", 10 * len(vectors))
    assert search.judge(queries, lost).queries == 10
    lazy, _ = own_scores_over(vectors, documents, most=30)
    found = lazy.search(queries, 30)
    assert (found.ids[:, 5:] == -1).all() and (found.by == BY_RETRIEVER).all()  # it has no more, and nobody else has
    assert lazy.judge(queries, found).recall is None
