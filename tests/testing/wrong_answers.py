"""Retrievers that are wrong in one way each: in what they declare, what they answer, how much and how wide."""

import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.protocols import Capabilities, Neighbours
from tests.testing.right_retriever import Build, Right, Search, ranked

# What it declares.


class WithProcessId(Right):
    def fingerprint(self) -> dict[str, object]:
        return {"id": os.getpid()}


class WithHash(Right):
    def fingerprint(self) -> dict[str, object]:
        return {"options": hash("x")}


class WithTime(Right):
    def fingerprint(self) -> dict[str, object]:
        return {"made": time.time_ns()}


class WithSearchOptions(Right):
    def fingerprint(self) -> dict[str, object]:
        return {"search": asdict(self._search)}


class ChangedByBuilding(Right):
    def fingerprint(self) -> dict[str, object]:
        return {"size": len(getattr(self, "vectors", ()))}


class Cosine(Right):
    metric = "cosine"


class NotExact(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        scores = self.scores(queries)
        scores[:, ::9] -= 10.0
        ids, _ = ranked(scores, k)
        return Neighbours(ids, ranked(self.scores(queries), k).scores)


class WithoutAnnotation(Right):
    def __init__(self, *, trees=10, build: Build | None = None, search: Search | None = None) -> None:  # type: ignore[no-untyped-def]
        super().__init__(build=build, search=search)


class ComputedDefault(Right):
    def __init__(
        self, *, trees: int = len("sixteen"), build: Build | None = None, search: Search | None = None
    ) -> None:
        super().__init__(build=build, search=search)


class LambdaDefault(Right):
    def __init__(self, *, trees: Any = lambda: 7, build: Build | None = None, search: Search | None = None) -> None:
        super().__init__(build=build, search=search)


@dataclass(frozen=True, kw_only=True)
class BuildOfComputedDefault:
    trees: int = len("abc")


class ComputedInItsBlock(Right):
    def __init__(self, *, build: BuildOfComputedDefault | None = None, search: Search | None = None) -> None:
        super().__init__(search=search)


class AnyKeyword(Right):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)


class Positional(Right):
    def __init__(self, build: Build | None = None, search: Search | None = None) -> None:
        super().__init__(build=build, search=search)


# What it answers.


class Capped(Right):
    exact = False
    most = 0

    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search_vectors(queries, k)
        ids[:, self.most :], scores[:, self.most :] = -1, -np.inf
        return Neighbours(ids, scores)


class At11(Capped):
    most = 11


class At20(Capped):
    most = 20


class At50(Capped):
    most = 50


class At100(Capped):
    most = 100


class TopOneOnly(Capped):
    most = 1


class DotProductUnderL2(Right):
    exact = False

    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        chosen, _ = ranked(queries @ self.vectors.T, k)
        true = self.scores(queries)
        only = np.full_like(true, -np.inf)
        np.put_along_axis(only, np.maximum(chosen, 0), np.take_along_axis(true, np.maximum(chosen, 0), axis=1), axis=1)
        ids, scores = ranked(only, k)
        return Neighbours(np.where(scores == -np.inf, -1, ids), scores)


class CosineAsInnerProduct(Right):
    metric = "inner_product"

    def scores(self, queries: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(self.vectors, axis=1)
        return queries @ self.vectors.T / np.where(lengths == 0, 1, lengths)


class DistancesNotSquared(Right):
    def scores(self, queries: np.ndarray) -> np.ndarray:
        return -np.sqrt(-super().scores(queries))


class ExitsForZeroQuery(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        if not queries.any():
            sys.exit(0)
        return super().search_vectors(queries, k)


class NothingForZeroQuery(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search_vectors(queries, k)
        nothing = ~queries.any(axis=1)
        ids[nothing], scores[nothing] = -1, -np.inf
        return Neighbours(ids, scores)


class DuplicatesDropped(Right):
    def scores(self, queries: np.ndarray) -> np.ndarray:
        scores = super().scores(queries)
        _, first = np.unique(self.vectors, axis=0, return_index=True)
        again = np.setdiff1d(np.arange(len(self.vectors)), first)
        scores[:, again] = -1e9
        return scores


class FirstNeverFound(Right):
    exact = False

    def scores(self, queries: np.ndarray) -> np.ndarray:
        scores = super().scores(queries)
        scores[:, 0] = -1e9
        return scores


class AtLeastTen(Right):
    def build_vectors(self, vectors: Any) -> None:
        if len(vectors) < 10:
            raise ValueError("too few")
        super().build_vectors(vectors)


# How much, how wide.


class RaisesAboveK3000(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        if k > 3_000:
            raise ValueError("k is too large")
        return super().search_vectors(queries, k)


class SizedByTheFirstBuild(Right):
    def build_vectors(self, vectors: Any) -> None:
        self.width = getattr(self, "width", vectors.shape[1])
        if vectors.shape[1] != self.width:
            raise ValueError("another width")
        super().build_vectors(vectors)


class CapabilitiesByBuild(Right):
    def build_vectors(self, vectors: Any) -> None:
        super().build_vectors(vectors)
        self.capabilities = Capabilities(exact=False)


class CachesOnLoad(Right):
    def load(self, folder: Path) -> None:
        super().load(folder)
        np.save(folder / "squares.npy", np.square(self.vectors).sum(axis=1))


class BuildsInTheCurrentFolder(Right):
    def build_vectors(self, vectors: Any) -> None:
        super().build_vectors(vectors)
        np.save("work.npy", self.vectors)


class NoFewerThanTwoDifferent(Right):
    def build_vectors(self, vectors: Any) -> None:
        super().build_vectors(vectors)
        if len(vectors) > 10 and (self.vectors == self.vectors[0]).all():
            raise ValueError("k-means needs two different vectors")


class ChangesSettings(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        now = np.geterr()["under"]  # a third setting each time, so that two searches do not put it back
        np.seterr(under={"ignore": "warn", "warn": "print"}.get(now, "ignore"))
        return super().search_vectors(queries, k)


class RaisesAbove1024(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        if len(queries) > 1_024:
            raise ValueError("too many queries")
        return super().search_vectors(queries, k)


class NothingAbove1024(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search_vectors(queries, k)
        ids[1_024:], scores[1_024:] = -1, -np.inf
        return Neighbours(ids, scores)


class ForgetsAfter(Right):
    exact = False
    most = 0

    def build_vectors(self, vectors: Any) -> None:
        super().build_vectors(vectors)
        self.vectors = self.vectors[: self.most]


class ForgetsAfter4096(ForgetsAfter):
    most = 4_096


class ForgetsAfter16384(ForgetsAfter):
    most = 16_384


class LastBlockForgotten(Right):
    exact = False

    def build_vectors(self, vectors: Any) -> None:
        super().build_vectors(vectors)
        self.vectors = (
            self.vectors[: max(1, len(vectors) // 16_384 * 16_384)] if len(vectors) > 16_384 else self.vectors
        )


class LastForgotten(Right):
    exact = False

    def build_vectors(self, vectors: Any) -> None:
        super().build_vectors(vectors)
        self.vectors = self.vectors[: max(1, len(vectors) - 1)]


class IdsOf16Bits(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search_vectors(queries, k)
        return Neighbours(np.where(ids < 0, -1, ids.astype(np.uint16)).astype(np.int64), scores)


class WidthOf8Only(Right):
    def build_vectors(self, vectors: Any) -> None:
        if vectors.shape[1] % 8:
            raise ValueError("the width must be a multiple of 8")
        super().build_vectors(vectors)


class WidthCutTo8(Right):
    exact = False

    def scores(self, queries: np.ndarray) -> np.ndarray:
        wide = max(1, queries.shape[1] // 8 * 8)
        products = queries[:, :wide] @ self.vectors[:, :wide].T
        squares = np.square(self.vectors[:, :wide]).sum(axis=1) + np.square(queries[:, :wide]).sum(axis=1)[:, None]
        return np.minimum(2 * products - squares, 0.0)


class WidthAtMost256(Right):
    exact = False

    def scores(self, queries: np.ndarray) -> np.ndarray:
        cut = queries[:, :256], self.vectors[:, :256]
        squares = np.square(cut[1]).sum(axis=1) + np.square(cut[0]).sum(axis=1)[:, None]
        return np.minimum(2 * cut[0] @ cut[1].T - squares, 0.0)


class ReadsAllAtOnce(Right):
    def build_vectors(self, vectors: Any) -> None:
        self.vectors = np.asarray(vectors[:], np.float32)
