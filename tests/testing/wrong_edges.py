"""Retrievers that are wrong in one way each, at the edges: many results, equal vectors, few, far, long and short ones."""

from pathlib import Path

import numpy as np

from retroflow.protocols import Capabilities, Neighbours
from tests.testing.right_retriever import Right, ranked


def without(answer: Neighbours, lost: np.ndarray) -> Neighbours:
    ids, scores = answer
    return Neighbours(np.where(lost, -1, ids), np.where(lost, -np.inf, scores).astype(np.float32))


class ExactUpTo(Right):
    """The worst follow the best so many, in place of the next best."""

    most = 0

    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search_vectors(queries, k)
        if self.most < k < len(self.vectors):
            true = self.scores(queries)
            ids[:, self.most :] = np.argsort(true, axis=1, kind="stable")[:, : k - self.most][:, ::-1]
            scores[:, self.most :] = np.take_along_axis(true, ids[:, self.most :], axis=1)
        return Neighbours(ids, scores)


class ExactUpTo64(ExactUpTo):
    most = 64


class ExactUpTo256(ExactUpTo):
    most = 256


class InventsScoresOfMany(Right):
    exact = False

    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search_vectors(queries, k)
        if k > 10:
            invented = scores[:, :1] - np.arange(k, dtype=np.float32)
            scores = np.where(ids < 0, -np.inf, invented).astype(np.float32)
        return Neighbours(ids, scores)


class AtMost8Equal(Right):
    exact = False

    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        scores = self.scores(queries)
        for row in scores:
            order = np.argsort(-row, kind="stable")
            row[order[8:][row[order[8:]] == row[order[:-8]]]] = -np.inf
        ids, found = ranked(scores, k)
        return without(Neighbours(ids, found), found == -np.inf)


class OneOfFew(Right):
    exact = False

    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        few = len(self.vectors) < 10
        return without(super().search_vectors(queries, k), np.broadcast_to(few & (np.arange(k) > 0), (len(queries), k)))


class WithinARadius(Right):
    exact = False

    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search_vectors(queries, k)
        return without(Neighbours(ids, scores), scores < -12.0 * np.square(self.vectors).sum(axis=1).max())


class PositiveProductsOnly(Right):
    """As by a heap that begins with 0."""

    metric = "inner_product"
    exact = False

    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search_vectors(queries, k)
        return without(Neighbours(ids, scores), scores < 0)


class ThreeDecimals(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search_vectors(queries, k)
        return Neighbours(ids, np.round(scores, 3))


class FixedRange(Right):
    def build_vectors(self, vectors: object) -> None:
        super().build_vectors(vectors)
        self.vectors = np.clip(self.vectors, -8.0, 8.0)


# What it declares, later than at the build.


class FingerprintBySearch(Right):
    searched = False

    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        self.searched = True
        return super().search_vectors(queries, k)

    def fingerprint(self) -> dict[str, object]:
        return {"searched": self.searched}


class FingerprintByLoad(Right):
    loaded = False

    def load(self, folder: Path) -> None:
        self.loaded = True
        super().load(folder)

    def fingerprint(self) -> dict[str, object]:
        return {"loaded": self.loaded}


class CapabilitiesByLoad(Right):
    def load(self, folder: Path) -> None:
        super().load(folder)
        self.capabilities = Capabilities(exact=False)


class CapabilitiesBySearch(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        self.capabilities = Capabilities(exact=True, fork_safe=False)
        return super().search_vectors(queries, k)
