"""The k nearest allowed neighbours of a chunk: the retriever's answer, and the exact one.

Where scores compare vectors ("l2", "inner_product") the exact answer is vector arithmetic. Where they are the
retriever's own (BM25), only the retriever can compute it, from more candidates, if necessary from all.

Shapes: q queries, N keys, D embedding width, k neighbours, f candidates fetched.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retroflow.protocols import Float32Array, Int64Array, Metric, Neighbours, VectorSource
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.retrieval.keys import LazyQueries

MAX_FETCH = 4096  # beyond it the exact search below costs less than a backend's
FEW_VECTORS = 1 << 17  # to compare a query with so many costs about what a search for MAX_FETCH candidates does
FIRST_FETCHES = 64  # how far candidates are doubled all the same, for documents whose chunks are unlike each other
MAX_CANDIDATES = 1 << 18  # of one call to the backend: some 8 MB with what is computed from them
EXACT_QUERIES = 256
EXACT_VECTORS = 4096
MOST_RANKED = 1 << 26  # scores of the retriever's own that are computed to measure its recall
LEAST_GROUP = 32  # queries of one document that are worth a pass of their own over the vectors

BY_RETRIEVER, RAN_OUT, LARGE_DOCUMENT = 0, 1, 2
"""Who found the neighbours of a query: the retriever, or exact search since the retriever had too few candidates, or
since the query's own document holds more chunks than the candidates that are fetched."""

_Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ChunkQueries:
    """Chunks that look for neighbours.

    Attributes:
        queries: their vectors and texts.
        excluded: int64 [q], the document whose chunks are not allowed; None if every chunk is allowed.
    """

    queries: LazyQueries
    excluded: Int64Array | None

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def vectors(self) -> Float32Array:
        """Float32 [q, D]."""
        return self.queries.vectors

    def part(self, rows: Int64Array) -> "ChunkQueries":
        """Some of the queries."""
        return ChunkQueries(self.queries.part(rows), None if self.excluded is None else self.excluded[rows])


class Found(NamedTuple):
    """The neighbours of queries, and how they were found.

    Attributes:
        ids, scores: as in `Neighbours`, [q, k].
        by: uint8 [q], BY_RETRIEVER, RAN_OUT or LARGE_DOCUMENT.
    """

    ids: Int64Array
    scores: Float32Array
    by: NDArray[np.uint8]


class Judgement(NamedTuple):
    """The retriever's own answer compared with the exact one.

    Attributes:
        recall: share of the exact neighbours that it found, compared by score, so an equal copy counts. None if it
            searched none of the queries, or if the exact neighbours are unknown.
        queries: number of queries that it searched.
        score_error: median distance of its scores from the true ones, relative to the difference of two queries.
    """

    recall: float | None
    queries: int
    score_error: float


class LegalSearch:
    """Searches a database for neighbours outside the query's own document.

    Args:
        retriever: with its index.
        vectors: the embeddings [N, D] that the index was built over; None, or not read, where the retriever's scores
            are its own.
        documents: int64 [N], non-decreasing; a neighbour is legal if its document is not the query's excluded one.
            None: every row counts as a document.
        overfetch: number of candidates of the first search.
    """

    def __init__(
        self, retriever: CheckedRetriever, vectors: VectorSource | None, documents: Int64Array | None, overfetch: int
    ) -> None:
        self.retriever = retriever
        self._vectors: VectorSource = np.empty((0, 0), np.float32) if vectors is None else vectors
        self._documents = documents
        self._overfetch = overfetch
        self._count = len(retriever)

    def search(self, queries: ChunkQueries, k: int) -> Found:
        """Find k legal neighbours of every query; fewer only if the database has fewer."""
        return self.complete(queries, self.own_answer(queries, k))

    def own_answer(self, queries: ChunkQueries, k: int) -> Found:
        """Return what the retriever finds without exact search.

        Candidates are doubled for the queries that lack neighbours, until the retriever runs out of them (it answers
        -1). Where exact search by vectors is possible, it is given up beyond `MAX_FETCH` candidates, and earlier where
        the query's own document is larger than that and exact search costs less.

        Returns:
            k neighbours of every query that is found by the retriever, fewer of the others; fewer, too, where its
            scores are its own and it has no more.
        """
        found = Found(*_nothing(len(queries), k), np.zeros(len(queries), np.uint8))
        limit = self._count if self._has_own_scores else min(MAX_FETCH, self._count)
        most = np.minimum(self._worth_fetching(queries), limit)
        found.by[most == 0] = LARGE_DOCUMENT
        starved = np.flatnonzero(most)
        fetch = min(k if queries.excluded is None else max(self._overfetch, k + 1), self._count)
        while len(starved):
            lacking, exhausted = self._fetch(queries, starved, fetch, found)
            found.by[starved[lacking & exhausted]] = RAN_OUT
            starved = starved[lacking & ~exhausted]
            found.by[starved[fetch >= most[starved]]] = LARGE_DOCUMENT
            starved = starved[fetch < most[starved]]
            fetch = min(2 * fetch, limit)
        if self._has_own_scores:  # a query that lacks neighbours then has no more of them
            found.by[:] = BY_RETRIEVER
        return found

    def complete(self, queries: ChunkQueries, found: Found) -> Found:
        """Search exactly for queries with fewer than k neighbours, and add the results to `found`."""
        rest = np.flatnonzero(found.by != BY_RETRIEVER)
        if len(rest):
            found.ids[rest], found.scores[rest] = self.exact(queries.part(rest), found.ids.shape[1])
        return found

    def _fetch(
        self, queries: ChunkQueries, rows: Int64Array, fetch: int, found: Found
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Add the results of a search with `fetch` candidates for some rows.

        Returns:
            bool [rows] twice: fewer than k legal ones were found; the backend has no more candidates.
        """
        k = found.ids.shape[1]
        lacking, exhausted = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
        step = max(1, MAX_CANDIDATES // fetch)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            answer = self.retriever.search(queries.queries.part(part), fetch)  # [p, f]
            legal = answer.ids >= 0
            exhausted[start : start + step] = ~legal[:, -1]
            if queries.excluded is not None:
                legal &= self._documents_of(np.maximum(answer.ids, 0)) != queries.excluded[part][:, None]
            rank = np.cumsum(legal, axis=1)  # [p, f], 1 for the first legal candidate
            row, column = np.nonzero(legal & (rank <= k))
            place = rank[row, column] - 1
            found.ids[part[row], place] = answer.ids[row, column]
            found.scores[part[row], place] = answer.scores[row, column]
            lacking[start : start + step] = rank[:, -1] < k
        return lacking, exhausted

    def exact(self, queries: ChunkQueries, k: int) -> Neighbours:
        """Find the k nearest legal neighbours by comparing with every vector; time q N D, memory constant.

        Chunks of a document that is much of the database are not compared with it: N is then what is outside it.
        """
        found = _nothing(len(queries), k)
        for rows, ranges in self._groups(queries):
            for start in range(0, len(rows), EXACT_QUERIES):
                part = rows[start : start + EXACT_QUERIES]
                found.ids[part], found.scores[part] = self._exact_part(queries.part(part), ranges, k)
        return found

    def judge(self, queries: ChunkQueries, own: Found) -> Judgement:
        """Compare the retriever's own answer with the exact one."""
        if self._has_own_scores:
            return self._judge_by_own_scores(queries, own)
        asked = np.flatnonzero(own.by != LARGE_DOCUMENT)
        queries, own = queries.part(asked), Found(own.ids[asked], own.scores[asked], own.by[asked])
        exact = self.exact(queries, own.ids.shape[1])
        wanted = (exact.ids >= 0).sum()
        if not wanted:
            return Judgement(None, len(asked), 0.0)
        is_found = own.ids >= 0
        true = self._true_scores(queries, own.ids)  # [q, k]
        worst = np.where(exact.ids >= 0, exact.scores, np.inf).min(axis=1, keepdims=True)
        hits = is_found & (true >= worst - _rounding(worst))
        error = 0.0
        if is_found.any():
            off = np.maximum(np.abs(own.scores - true) - _rounding(true), 0.0)
            error = float(np.median(off[is_found])) / self._spread(queries)
        return Judgement(float(hits.sum() / wanted), len(asked), error)

    def _judge_by_own_scores(self, queries: ChunkQueries, own: Found) -> Judgement:
        """Compare with the ranking of all keys, if the retriever declares that it ranks all of them by their scores."""
        if not self.retriever.capabilities.exact:
            return Judgement(None, 0, 0.0)
        number = min(len(queries), max(1, MOST_RANKED // self._count))
        sample = np.unique(np.linspace(0, len(queries) - 1, number, dtype=np.int64))
        ranked = Found(*_nothing(number, own.ids.shape[1]), np.zeros(number, np.uint8))
        self._fetch(queries.part(sample), np.arange(number), self._count, ranked)
        wanted = ranked.ids >= 0
        if not wanted.any():
            return Judgement(None, number, 0.0)
        worst = np.where(wanted, ranked.scores, np.finfo(np.float32).max).min(axis=1, keepdims=True)
        hits = (own.ids[sample] >= 0) & (own.scores[sample] >= worst - _rounding(worst))
        return Judgement(float(hits.sum() / wanted.sum()), number, 0.0)

    def _true_scores(self, queries: ChunkQueries, ids: Int64Array) -> Float32Array:
        """Similarity of every query with the vectors of its ids [q, k]; that of row 0 where an id is -1."""
        wanted = np.unique(np.maximum(ids, 0))
        vectors = np.concatenate([self._vectors[row : row + 1] for row in wanted.tolist()]).astype(np.float32)
        answered = vectors[np.searchsorted(wanted, np.maximum(ids, 0))]  # [q, k, D]
        pairs = zip(queries.vectors[:, None, :], answered, strict=True)
        return np.concatenate([_similarity(query, candidates, self._metric) for query, candidates in pairs])

    def _spread(self, queries: ChunkQueries) -> float:
        """How far the similarities of two queries are apart, typically."""
        if self._metric == "inner_product":
            spread = float(np.median(np.einsum("ij,ij->i", queries.vectors, queries.vectors)))
        else:
            spread = float(np.median(-_similarity(queries.vectors, queries.vectors, "l2")))
        return spread if spread > 0.0 else 1.0

    def _worth_fetching(self, queries: ChunkQueries) -> Int64Array:
        """Return the most candidates [q] worth fetching, from the number of chunks outside the query's own document."""
        if self._has_own_scores:
            return np.full(len(queries), self._count)
        most = np.full(len(queries), MAX_FETCH)
        if queries.excluded is not None:
            start, stop = self._rows_of(queries.excluded)
            is_large, others = stop - start > MAX_FETCH, self._count - (stop - start)
            most[is_large & (others <= FEW_VECTORS)] = FIRST_FETCHES
            most[is_large & (others <= MAX_FETCH)] = 0
        return most

    def _groups(self, queries: ChunkQueries) -> Iterator[tuple[Int64Array, _Ranges]]:
        """Yield rows of queries, and the ranges of vectors to compare them with."""
        everything = ((0, self._count),)
        others = np.arange(len(queries))
        if queries.excluded is not None:
            documents, group, counts = np.unique(queries.excluded, return_inverse=True, return_counts=True)
            start, stop = self._rows_of(documents)
            is_alone = (stop - start > EXACT_VECTORS) & (counts >= LEAST_GROUP)
            for number in np.flatnonzero(is_alone):
                before, after = (0, int(start[number])), (int(stop[number]), self._count)
                yield np.flatnonzero(group == number), (before, after)
            others = np.flatnonzero(~is_alone[group])
        if len(others):
            yield others, everything

    def _rows_of(self, documents: Int64Array) -> tuple[Int64Array, Int64Array]:
        """First row of each of documents [q], and the row after its last one."""
        if self._documents is None:
            return documents, documents + 1
        first, last = (np.searchsorted(self._documents, documents, side=side) for side in ("left", "right"))
        return first, last

    def _documents_of(self, rows: Int64Array) -> Int64Array:
        return rows if self._documents is None else np.asarray(self._documents[rows])

    @property
    def _has_own_scores(self) -> bool:
        return self._metric == "own"

    @property
    def _metric(self) -> Metric:
        return self.retriever.capabilities.metric

    def _exact_part(self, queries: ChunkQueries, ranges: _Ranges, k: int) -> Neighbours:
        best = _nothing(len(queries), k)
        for first, last in ranges:
            for start in range(first, last, EXACT_VECTORS):
                stop = min(start + EXACT_VECTORS, last)
                scores = _similarity(queries.vectors, np.asarray(self._vectors[start:stop], np.float32), self._metric)
                if queries.excluded is not None:
                    documents = self._documents_of(np.arange(start, stop))
                    hit = (queries.excluded >= documents[0]) & (queries.excluded <= documents[-1])
                    scores[hit] = np.where(documents[None, :] == queries.excluded[hit, None], -np.inf, scores[hit])
                _merge(best, scores, start)
        return best


def _similarity(queries: Float32Array, vectors: Float32Array, metric: Metric) -> Float32Array:
    products: Float32Array = queries @ vectors.T  # [q, block]
    if metric == "inner_product":
        return products
    products *= 2
    products -= np.einsum("ij,ij->i", vectors, vectors)[None, :]
    products -= np.einsum("ij,ij->i", queries, queries)[:, None]
    return products


def _rounding(scores: Float32Array) -> Float32Array:
    """What two float32 computations of a score may differ by."""
    return np.asarray(1e-4 * np.maximum(1.0, np.abs(scores)), np.float32)


def _merge(best: Neighbours, scores: Float32Array, first_id: int) -> None:
    """Merge a block of scores [q, block], for ids from first_id on, into the best so far."""
    rows = np.flatnonzero(scores.max(axis=1) > best.scores[:, -1])
    if not len(rows):
        return
    k, scores = best.ids.shape[1], scores[rows]
    if scores.shape[1] > k:
        columns = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    else:
        columns = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    new_scores = np.take_along_axis(scores, columns, axis=1)
    new_ids = np.where(np.isneginf(new_scores), -1, columns + first_id)
    all_scores = np.concatenate([best.scores[rows], new_scores], axis=1)
    all_ids = np.concatenate([best.ids[rows], new_ids], axis=1)
    order = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
    best.ids[rows] = np.take_along_axis(all_ids, order, axis=1)
    best.scores[rows] = np.take_along_axis(all_scores, order, axis=1)


def _nothing(num_queries: int, k: int) -> Neighbours:
    return Neighbours(
        np.full((num_queries, k), -1, dtype=np.int64), np.full((num_queries, k), -np.inf, dtype=np.float32)
    )
