"""Search over the segments of a version: candidates of each, scored again from the stored vectors, then merged.

Scores are computed in float64 from what is stored, whatever the segment and its index, and equal ones are ordered by
document and place. So the answer of an exact retriever does not depend on the history of the database.

Shapes: q queries, k neighbours, f candidates, D embedding width, n chunks of a segment.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retroflow.components import create_retriever
from retroflow.database.view import View
from retroflow.protocols import Capabilities, Float32Array, Int64Array, Neighbours, Queries
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.retrieval.keys import Keys
from retroflow.store.segment import Segment

SMALL_SEGMENT = 8192
"""Chunks below which a segment is compared as a whole: some milliseconds, and many indexes cannot be made of so few."""

OVERFETCH = 16
MAX_FETCH = 4096
QUERIES_AT_ONCE = 64
_ROUNDING = 1e-5  # of float32 products, relative to the squares of the vectors

Allowed = Callable[[Int64Array, Int64Array], NDArray[np.bool_]]


class Search(Protocol):
    """Finds chunks of a version."""

    capabilities: Capabilities

    def __len__(self) -> int: ...

    def search(self, queries: Queries, k: int, excluded: Int64Array | None = None) -> Neighbours:
        """Find the k nearest chunks.

        Args:
            queries: q of them; vectors must have been rounded to float16, as stored ones are.
            k: at least 1.
            excluded: int64 [q], the number of a document that each query does not get, -1 for none.
        """
        ...


def needs_index(capabilities: Capabilities, chunks: int) -> bool:
    """Say whether a segment of so many chunks gets an index of its own on disk."""
    return capabilities.metric != "own" and not capabilities.exact and chunks >= SMALL_SEGMENT


class SegmentSearch:
    """Candidates in one segment.

    Args:
        segment: with embeddings.
        numbers: int64 [n], each chunk's number in the view, -1 if it is removed.
        new_retriever: makes the database's retriever.
    """

    def __init__(self, segment: Segment, numbers: Int64Array, new_retriever: Callable[[], CheckedRetriever]) -> None:
        assert segment.embeddings is not None
        self._segment, self._numbers, self._new = segment, numbers, new_retriever
        self._vectors = segment.embeddings

    @cached_property
    def _retriever(self) -> CheckedRetriever:
        retriever = self._new()
        if self._segment.index is not None:
            retriever.load(self._segment.index)
        elif retriever.capabilities.exact:
            retriever.build(Keys(self._vectors))
        else:
            return self._exact
        return retriever

    @cached_property
    def _exact(self) -> CheckedRetriever:
        retriever = create_retriever({"name": "exact", "build": {"metric": self._new().capabilities.metric}})
        retriever.build(Keys(self._vectors))
        return retriever

    def nearest(self, queries: Float32Array, k: int, allowed: Allowed) -> Neighbours:
        """Find the k best chunks [q, k] that are allowed: their numbers in the view, -1 if none, and scores.

        Args:
            queries: float32 [q, D].
            k: of them.
            allowed: says for rows [r] of the queries and numbers [r, f] which are, bool [r, f].
        """
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        retriever, pending, fetch = self._retriever, np.arange(len(queries)), k + OVERFETCH
        while len(pending):
            fetch = min(fetch, len(self._numbers))
            answer = retriever.search(queries[pending], fetch)
            numbers = np.where(answer.ids >= 0, self._numbers[answer.ids], -1)
            numbers[~allowed(pending, numbers)] = -1
            found = self._scores(queries[pending], answer.ids)
            found[numbers < 0] = -np.inf
            ids[pending], scores[pending] = best(numbers, found, k)
            exhausted = (answer.ids[:, -1] < 0) | (fetch == len(self._numbers))
            lacks = ids[pending, -1] < 0
            if retriever.capabilities.exact:
                # What was not fetched is at most as near as the last candidate, up to rounding.
                unseen = answer.scores[:, -1] + self._rounding(queries[pending])
                pending = pending[~exhausted & (lacks | (unseen >= scores[pending, -1]))]
            else:
                pending = pending[lacks]
                if len(pending) and (fetch >= MAX_FETCH or exhausted[lacks].all()):
                    retriever, fetch = self._exact, k
            fetch *= 2
        return Neighbours(ids, scores)

    def _scores(self, queries: Float32Array, rows: Int64Array) -> Float32Array:
        """Score rows [q, f] of the segment; any value where a row is -1."""
        found = np.empty(rows.shape, dtype=np.float32)
        is_l2 = self._metric == "l2"
        for query, own, out in zip(queries.astype(np.float64), np.maximum(rows, 0), found, strict=True):
            vectors = self._vectors[own].astype(np.float64)  # [f, D]
            out[:] = -np.square(vectors - query).sum(axis=1) if is_l2 else (vectors * query).sum(axis=1)
        return found

    @cached_property
    def _metric(self) -> str:
        return self._retriever.capabilities.metric

    @cached_property
    def _largest(self) -> float:
        """The largest squared length of a vector."""
        return max(
            float(np.square(self._vectors[start : start + SMALL_SEGMENT].astype(np.float32)).sum(axis=1).max())
            for start in range(0, len(self._vectors), SMALL_SEGMENT)
        )

    def _rounding(self, queries: Float32Array) -> Float32Array:
        squares = np.square(queries).sum(axis=1)
        return np.asarray(_ROUNDING * (1.0 + squares + self._largest), np.float32)


class VersionSearch:
    """Search over all segments by vectors; a `Search`."""

    def __init__(self, segments: Sequence[Segment], view: View, new_retriever: Callable[[], CheckedRetriever]) -> None:
        self.capabilities = new_retriever().capabilities
        self._view = view
        self._parts = [
            SegmentSearch(segment, numbers, new_retriever)
            for segment, numbers in zip(segments, view.numbers_in, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._view)

    def search(self, queries: Queries, k: int, excluded: Int64Array | None = None) -> Neighbours:
        """As in `Search`."""
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        if not len(self):
            return Neighbours(ids, scores)
        vectors = queries.vectors
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            rows = slice(start, start + QUERIES_AT_ONCE)
            allowed = self._allowed(None if excluded is None else excluded[rows])
            found = [part.nearest(vectors[rows], k, allowed) for part in self._parts]
            merged = [np.concatenate(each, axis=1) for each in zip(*found, strict=True)]
            ids[rows], scores[rows] = best(merged[0], merged[1], k)
        return Neighbours(ids, scores)

    def _allowed(self, excluded: Int64Array | None) -> Allowed:
        def allowed(rows: Int64Array, numbers: Int64Array) -> NDArray[np.bool_]:
            is_live = numbers >= 0
            if excluded is None:
                return is_live
            own: NDArray[np.bool_] = self._view.document_ids[np.maximum(numbers, 0)] == excluded[rows][:, None]
            return is_live & ~own

        return allowed


class WholeSearch:
    """Search of an index over all chunks of the version in the order of its view; a `Search`."""

    def __init__(self, retriever: CheckedRetriever, view: View) -> None:
        self.capabilities = retriever.capabilities
        self._retriever, self._view = retriever, view

    def __len__(self) -> int:
        return len(self._view)

    def search(self, queries: Queries, k: int, excluded: Int64Array | None = None) -> Neighbours:
        """As in `Search`."""
        if excluded is None or not len(self):
            return self._retriever.search(queries, k)
        fetch = k
        while True:
            fetch = min(max(k, 2 * fetch), max(k, len(self)))
            answer = self._retriever.search(queries, fetch)
            is_own = self._view.document_ids[np.maximum(answer.ids, 0)] == excluded[:, None]
            numbers = np.where((answer.ids >= 0) & ~is_own, answer.ids, -1)
            # Stable: the order of equal scores is the retriever's.
            order = np.argsort(numbers < 0, axis=1, kind="stable")[:, :k]
            ids = np.take_along_axis(numbers, order, axis=1)
            if fetch >= len(self) or not ((ids[:, -1] < 0) & (answer.ids[:, -1] >= 0)).any():
                scores = np.where(ids >= 0, np.take_along_axis(answer.scores, order, axis=1), -np.inf)
                return Neighbours(ids, scores.astype(np.float32))


def best(numbers: Int64Array, scores: Float32Array, k: int) -> Neighbours:
    """Return the k best of [q, f], best first, equal scores by ascending number; -1 and -inf at the end."""
    order = np.lexsort((numbers, -scores), axis=-1)[:, :k]
    ids, found = np.take_along_axis(numbers, order, axis=1), np.take_along_axis(scores, order, axis=1)
    lacking = k - ids.shape[1]
    if lacking > 0:
        ids = np.pad(ids, ((0, 0), (0, lacking)), constant_values=-1)
        found = np.pad(found, ((0, 0), (0, lacking)), constant_values=-np.inf)
    return Neighbours(ids, found)
