"""The k nearest chunks that a chunk may have as neighbours, and the exact answer to compare with.

Shapes: q queries, N vectors, D embedding width, k neighbours, f candidates fetched.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from retroflow.protocols import Float32Array, Int64Array, Neighbours, VectorSource
from retroflow.retrieval.checked import CheckedRetriever

MAX_FETCH = 4096  # beyond it the exact search below costs less than a backend's
MAX_CANDIDATES = 1 << 18  # of one call to the backend: some 8 MB with what is computed from them
EXACT_QUERIES = 256
EXACT_VECTORS = 4096


@dataclass(frozen=True)
class Queries:
    """Chunks that look for neighbours.

    Attributes:
        vectors: float32 [q, D].
        excluded: int64 [q], the key that a neighbour must not have; None if every chunk is legal.
    """

    vectors: Float32Array
    excluded: Int64Array | None

    def part(self, rows: slice | Int64Array) -> "Queries":
        """Some of the queries."""
        return Queries(self.vectors[rows], None if self.excluded is None else self.excluded[rows])


class LegalSearch:
    """Searches a database for neighbours outside the query's own document.

    Args:
        retriever: holds the index over vectors.
        vectors: the embeddings [N, D] that the index was built over.
        keys: int64 [N], a neighbour is legal if its key is not the query's excluded one; None: the key is the row.
        overfetch: candidates asked for at first.

    Attributes:
        num_exact: queries so far that the backend had too few legal candidates for, searched exactly.
    """

    def __init__(
        self, retriever: CheckedRetriever, vectors: VectorSource, keys: Int64Array | None, overfetch: int
    ) -> None:
        self.num_exact = 0
        self._retriever, self._vectors, self._keys = retriever, vectors, keys
        self._overfetch = overfetch

    def search(self, queries: Queries, k: int) -> Neighbours:
        """Find k legal neighbours of every query; fewer only where the database has fewer.

        Candidates are doubled for the queries that lack neighbours. A query for which the backend runs out of
        candidates (it answers -1) or that needs more than `MAX_FETCH` is searched exactly.
        """
        found = _nothing(len(queries.vectors), k)
        starved = np.arange(len(queries.vectors))
        exact: list[Int64Array] = []
        fetch = min(k if queries.excluded is None else max(self._overfetch, k + 1), len(self._vectors))
        while len(starved):
            lacking, exhausted = self._fetch(queries, starved, fetch, found)
            exact.append(starved[lacking & exhausted])
            starved = starved[lacking & ~exhausted]
            if fetch >= min(MAX_FETCH, len(self._vectors)):
                exact.append(starved)
                break
            fetch = min(2 * fetch, len(self._vectors))
        rest = np.concatenate(exact) if exact else starved
        if len(rest):
            self.num_exact += len(rest)
            answer = self.exact(queries.part(rest), k)
            found.ids[rest], found.scores[rest] = answer
        return found

    def _fetch(
        self, queries: Queries, rows: Int64Array, fetch: int, found: Neighbours
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Fill in what a search with `fetch` candidates finds for some rows.

        Returns:
            bool [rows] twice: fewer than k legal ones were found; the backend has no more candidates.
        """
        k = found.ids.shape[1]
        lacking, exhausted = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
        step = max(1, MAX_CANDIDATES // fetch)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            answer = self._retriever.search(queries.vectors[part], fetch)  # [p, f]
            legal = answer.ids >= 0
            exhausted[start : start + step] = ~legal[:, -1]
            if queries.excluded is not None:
                legal &= self._keys_of(np.maximum(answer.ids, 0)) != queries.excluded[part][:, None]
            rank = np.cumsum(legal, axis=1)  # [p, f], 1 for the first legal candidate
            row, column = np.nonzero(legal & (rank <= k))
            place = rank[row, column] - 1
            found.ids[part[row], place] = answer.ids[row, column]
            found.scores[part[row], place] = answer.scores[row, column]
            lacking[start : start + step] = rank[:, -1] < k
        return lacking, exhausted

    def exact(self, queries: Queries, k: int) -> Neighbours:
        """Find the k nearest legal neighbours by comparing with every vector; time q N D, memory constant."""
        found = _nothing(len(queries.vectors), k)
        for start in range(0, len(queries.vectors), EXACT_QUERIES):
            rows = slice(start, start + EXACT_QUERIES)
            found.ids[rows], found.scores[rows] = self._exact_part(queries.part(rows), k)
        return found

    def recall(self, queries: Queries, answer: Neighbours) -> float:
        """Share of the exact neighbours that an answer [q, k] holds, compared by score: an equal copy is as good."""
        exact = self.exact(queries, answer.ids.shape[1])
        wanted = np.unique(answer.ids[answer.ids >= 0])
        if not len(wanted):
            return float(not (exact.ids >= 0).any())
        vectors = np.concatenate([self._vectors[row : row + 1] for row in wanted.tolist()]).astype(np.float32)
        answered = vectors[np.searchsorted(wanted, np.maximum(answer.ids, wanted[0]))]  # [q, k, D]
        scores = np.stack(
            [
                _similarity(queries.vectors[row : row + 1], answered[row], self._metric)[0]
                for row in range(len(answered))
            ]
        )
        worst = np.where(exact.ids >= 0, exact.scores, np.inf).min(axis=1, keepdims=True)
        tolerance = 1e-4 * np.maximum(1.0, np.abs(worst))
        found = ((answer.ids >= 0) & (scores >= worst - tolerance)).sum()
        return float(found / max(1, (exact.ids >= 0).sum()))

    def _keys_of(self, rows: Int64Array) -> Int64Array:
        return rows if self._keys is None else np.asarray(self._keys[rows])

    @property
    def _metric(self) -> Literal["l2", "inner_product"]:
        return self._retriever.capabilities.metric

    def _exact_part(self, queries: Queries, k: int) -> Neighbours:
        best = _nothing(len(queries.vectors), k)
        for start in range(0, len(self._vectors), EXACT_VECTORS):
            stop = min(start + EXACT_VECTORS, len(self._vectors))
            scores = _similarity(queries.vectors, np.asarray(self._vectors[start:stop], np.float32), self._metric)
            if queries.excluded is not None:
                scores[self._keys_of(np.arange(start, stop))[None, :] == queries.excluded[:, None]] = -np.inf
            best = _merge(best, scores, start)
        return best


def _similarity(queries: Float32Array, vectors: Float32Array, metric: Literal["l2", "inner_product"]) -> Float32Array:
    products: Float32Array = queries @ vectors.T  # [q, block]
    if metric == "inner_product":
        return products
    products *= 2
    products -= np.einsum("ij,ij->i", vectors, vectors)[None, :]
    products -= np.einsum("ij,ij->i", queries, queries)[:, None]
    return products


def _merge(best: Neighbours, scores: Float32Array, first_id: int) -> Neighbours:
    """The k best of what was best so far and a block of scores [q, block] for ids from first_id on."""
    k = best.ids.shape[1]
    if scores.shape[1] > k:
        columns = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    else:
        columns = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    new_scores = np.take_along_axis(scores, columns, axis=1)
    new_ids = np.where(np.isneginf(new_scores), -1, columns + first_id)
    all_scores = np.concatenate([best.scores, new_scores], axis=1)
    all_ids = np.concatenate([best.ids, new_ids], axis=1)
    order = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
    return Neighbours(np.take_along_axis(all_ids, order, axis=1), np.take_along_axis(all_scores, order, axis=1))


def _nothing(num_queries: int, k: int) -> Neighbours:
    return Neighbours(
        np.full((num_queries, k), -1, dtype=np.int64), np.full((num_queries, k), -np.inf, dtype=np.float32)
    )
