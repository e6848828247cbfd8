"""Retrievers that are wrong in one way each: in what they do to their input, what they keep, what they do to the process."""

import ctypes
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.protocols import Neighbours
from tests.testing.right_retriever import Right, Search, ranked

# What it is given.


class ChangesQueries(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        answer = super().search_vectors(queries, k)
        if queries.flags.writeable:
            queries += 1.0
        return answer


class WantsWritableQueries(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        queries.flags.writeable = True  # raises where the caller's may not be changed
        return super().search_vectors(queries, k)


# State.


class QueryOnSelf(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        self._queries, self._k = queries, k
        time.sleep(0.001)
        scores = self.scores(self._queries)
        return ranked(scores, self._k)


class QueryOnSelfBriefly(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        self._queries, self._k = queries, k
        return ranked(self.scores(self._queries), self._k)


class CachedByFirstQuery(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        cache = self.__dict__.setdefault("_cache", {})
        key = (queries[0].tobytes(), queries.shape, k)
        if key not in cache:
            cache[key] = super().search_vectors(queries, k)
        return Neighbours(*(each.copy() for each in cache[key]))


class CachedByLastQuery(CachedByFirstQuery):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search_vectors(queries[::-1], k)
        return Neighbours(ids[::-1].copy(), scores[::-1].copy())


class CachedBySum(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        cache = self.__dict__.setdefault("_cache", {})
        key = (round(float(queries.astype(np.float64).sum()), 6), queries.shape, k)
        if key not in cache:
            cache[key] = super().search_vectors(queries, k)
        return Neighbours(*(each.copy() for each in cache[key]))


class LoadedWins(Right):
    def load(self, folder: Path) -> None:
        super().load(folder)
        self.loaded = self.vectors

    def scores(self, queries: np.ndarray) -> np.ndarray:
        self.vectors = getattr(self, "loaded", self.vectors)
        return super().scores(queries)


class CacheOutlivesBuild(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        cache = self.__dict__.setdefault("_cache", {})
        key = (queries.tobytes(), k)
        if key not in cache:
            cache[key] = super().search_vectors(queries, k)
        return Neighbours(*(each.copy() for each in cache[key]))


class LoadKeepsTheOld(Right):
    def load(self, folder: Path) -> None:
        if not hasattr(self, "vectors"):
            super().load(folder)


class LoadAppends(Right):
    """Adds to what was loaded before, and not to what was built."""

    def build_vectors(self, vectors: Any) -> None:
        super().build_vectors(vectors)
        self._loaded = np.empty((0, self.vectors.shape[1]), np.float32)

    def load(self, folder: Path) -> None:
        before = getattr(self, "_loaded", None)
        super().load(folder)
        if before is not None and before.shape[1] == self.vectors.shape[1]:
            self.vectors = np.concatenate([before, self.vectors])
        self._loaded = self.vectors


class KeepsAnswers(Right):
    """Gives the same arrays to whoever asks the same."""

    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        kept = self.__dict__.setdefault("kept", {})
        key = (id(self.vectors), queries.tobytes(), k)
        if key not in kept:
            kept[key] = super().search_vectors(queries, k)
        return kept[key]


class ScratchForMany(Right):
    """A batch of more than 16 queries goes through memory that threads share."""

    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        if len(queries) > 16:
            self._scratch = queries.copy()
            time.sleep(0.05)  # so that another large batch comes between
            queries = self._scratch
        return super().search_vectors(queries, k)


class ReadsAtTheFirstSearch(Right):
    """Which several threads may do at once, and then all but one take nothing."""

    def load(self, folder: Path) -> None:
        super().load(folder)
        self._unread = [self.vectors]

    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        if getattr(self, "_unread", None):
            time.sleep(0.2)  # so that the others are here, too
            self.vectors = self._unread.pop()
        return super().search_vectors(queries, k)


class RestoresSearchOptions(Right):
    """An index that was opened is searched as the one that wrote it would."""

    def scores(self, queries: np.ndarray) -> np.ndarray:
        scores = super().scores(queries)
        if self._search.effort > 5:
            scores[:, ::3] = -1e6
        return scores

    def load(self, folder: Path) -> None:
        super().load(folder)
        self._search = Search()


class BuildAppends(Right):
    def build_vectors(self, vectors: Any) -> None:
        before = getattr(self, "vectors", None)
        super().build_vectors(vectors)
        if before is not None:
            self.vectors = np.concatenate([before, self.vectors])[: 10 * len(vectors)]


class StateInTheClass(Right):
    def build_vectors(self, vectors: Any) -> None:
        super().build_vectors(vectors)
        StateInTheClass.vectors = self.__dict__.pop("vectors")


class SharedArrays(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search_vectors(queries, k)
        kept = self.__dict__.setdefault("_arrays", {})
        if ids.shape not in kept:
            kept[ids.shape] = (ids, scores)
        kept[ids.shape][0][:], kept[ids.shape][1][:] = ids, scores
        return Neighbours(*kept[ids.shape])


class RandomSearch(Right):
    exact = False

    def scores(self, queries: np.ndarray) -> np.ndarray:
        scores = super().scores(queries)
        scores[:, np.random.default_rng().random(scores.shape[1]) < 0.04] -= 100.0
        return scores


class RandomBuild(Right):
    exact = False

    def build_vectors(self, vectors: Any) -> None:
        super().build_vectors(vectors)
        self._lost = np.random.default_rng().random(len(self.vectors)) < 0.02

    def scores(self, queries: np.ndarray) -> np.ndarray:
        scores = super().scores(queries)
        if hasattr(self, "_lost"):
            scores[:, self._lost] = -1e9
        return scores


class RandomByHash(RandomBuild):
    def build_vectors(self, vectors: Any) -> None:
        Right.build_vectors(self, vectors)
        self._lost = np.random.default_rng(hash("seed") % 2**32).random(len(self.vectors)) < 0.02


class Prints(Right):
    def build_vectors(self, vectors: Any) -> None:
        print("building")
        super().build_vectors(vectors)


class PrintsNatively(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        ctypes.CDLL(None).puts(b"searching")
        return super().search_vectors(queries, k)


class SeedsNumpy(Right):
    def build_vectors(self, vectors: Any) -> None:
        np.random.seed(0)
        super().build_vectors(vectors)


class SeedsRandom(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        random.seed(0)
        return super().search_vectors(queries, k)


class SeedsTorch(Right):
    def build_vectors(self, vectors: Any) -> None:
        import torch

        torch.manual_seed(12345)
        super().build_vectors(vectors)


class ChangesFolder(Right):
    def save(self, folder: Path) -> None:
        super().save(folder)
        os.chdir(folder.parent)


class WrongAfterFork(Right):
    def build_vectors(self, vectors: Any) -> None:
        super().build_vectors(vectors)
        self._process = os.getpid()

    def scores(self, queries: np.ndarray) -> np.ndarray:
        factor = 1.0 if getattr(self, "_process", os.getpid()) == os.getpid() else 0.5
        return super().scores(queries) * factor


# What ends or stops a process.


class HangsInBuild(Right):
    def build_vectors(self, vectors: Any) -> None:
        while True:
            time.sleep(0.01)


class HangsInSearch(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        while True:
            time.sleep(0.01)


class HangsAfterFork(WrongAfterFork):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        while getattr(self, "_process", os.getpid()) != os.getpid():
            time.sleep(0.01)
        return super().search_vectors(queries, k)


class CrashesInBuild(Right):
    def build_vectors(self, vectors: Any) -> None:
        ctypes.string_at(0)


class CrashesInSearch(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        ctypes.string_at(0)
        return super().search_vectors(queries, k)


class CrashesInLoad(Right):
    def load(self, folder: Path) -> None:
        ctypes.string_at(0)


class LeavesInBuild(Right):
    def build_vectors(self, vectors: Any) -> None:
        os._exit(0)


class LeavesInSearch(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        os._exit(0)


class ExitsInBuild(Right):
    def build_vectors(self, vectors: Any) -> None:
        sys.exit(0)


class ExitsInSearch(Right):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        sys.exit(0)
