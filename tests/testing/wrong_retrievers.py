"""One correct brute-force retriever, and many that are wrong in one way each. test_wrong_retrievers.py has the table."""

import ctypes
import gzip
import json
import os
import pickle
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from retroflow.errors import DamagedDataError
from retroflow.protocols import Capabilities, Neighbours


@dataclass(frozen=True, kw_only=True)
class Build:
    metric: str = "l2"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Search:
    effort: int = 5


def ranked(scores: np.ndarray, k: int) -> Neighbours:
    """The k best of scores [q, N], equal ones by ascending id but for those at the k-th place."""
    if k < scores.shape[1]:  # those that may be among the k, then in order of score and id
        candidates = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
        inner = np.argsort(-np.take_along_axis(scores, candidates, axis=1), axis=1, kind="stable")
        order = np.take_along_axis(candidates, inner, axis=1)
    else:
        order = np.argsort(-scores, axis=1, kind="stable")
    ids = np.full((len(scores), k), -1, np.int64)
    found = np.full((len(scores), k), -np.inf, np.float32)
    ids[:, : order.shape[1]] = order
    found[:, : order.shape[1]] = np.take_along_axis(scores, order, axis=1)
    return Neighbours(ids, found)


class Right:
    """Brute force, correct in everything."""

    metric = "l2"
    exact = True
    deterministic = True
    fork_safe = True

    def __init__(self, *, build: Build | None = None, search: Search | None = None) -> None:
        self._build = build or Build()
        self._search = search or Search()
        self.capabilities = Capabilities(
            metric=self.metric, exact=self.exact, deterministic=self.deterministic, fork_safe=self.fork_safe
        )

    def build(self, vectors: Any) -> None:
        blocks = [vectors[start : start + 16_384] for start in range(0, len(vectors), 16_384)]
        self.vectors = np.concatenate(blocks).astype(np.float32)

    def scores(self, queries: np.ndarray) -> np.ndarray:
        products = queries @ self.vectors.T
        if self.metric == "inner_product":
            return products
        lengths = np.square(self.vectors).sum(axis=1) + np.square(queries).sum(axis=1)[:, None]
        return np.minimum(2 * products - lengths, 0.0)

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        return ranked(self.scores(queries), k)

    def save(self, folder: Path) -> None:
        np.save(folder / "vectors.npy", self.vectors)

    def load(self, folder: Path) -> None:
        try:
            self.vectors = np.load(folder / "vectors.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DamagedDataError(str(error)) from error

    def fingerprint(self) -> dict[str, object]:
        return {"version": "1"}  # the host adds options and versions


# Controls: unusual, and within the rules.


class ByInnerProduct(Right):
    metric = "inner_product"


class TiesDescending(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        last = len(self.vectors) - 1
        ids, scores = ranked(self.scores(queries)[:, ::-1], k)
        return Neighbours(np.where(ids < 0, -1, last - ids), scores)


class OptionsInTheFingerprint(Right):
    def fingerprint(self) -> dict[str, object]:
        return {"build": asdict(self._build)}


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
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
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

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search(queries, k)
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

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
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
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        if not queries.any():
            sys.exit(0)
        return super().search(queries, k)


class NothingForZeroQuery(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search(queries, k)
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
    def build(self, vectors: Any) -> None:
        if len(vectors) < 10:
            raise ValueError("too few")
        super().build(vectors)


# How much, how wide.


class RaisesAboveK3000(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        if k > 3_000:
            raise ValueError("k is too large")
        return super().search(queries, k)


class SizedByTheFirstBuild(Right):
    def build(self, vectors: Any) -> None:
        self.width = getattr(self, "width", vectors.shape[1])
        if vectors.shape[1] != self.width:
            raise ValueError("another width")
        super().build(vectors)


class CapabilitiesByBuild(Right):
    def build(self, vectors: Any) -> None:
        super().build(vectors)
        self.capabilities = Capabilities(exact=False)


class CachesOnLoad(Right):
    def load(self, folder: Path) -> None:
        super().load(folder)
        np.save(folder / "squares.npy", np.square(self.vectors).sum(axis=1))


class BuildsInTheCurrentFolder(Right):
    def build(self, vectors: Any) -> None:
        super().build(vectors)
        np.save("work.npy", self.vectors)


class NoFewerThanTwoDifferent(Right):
    def build(self, vectors: Any) -> None:
        super().build(vectors)
        if len(vectors) > 10 and (self.vectors == self.vectors[0]).all():
            raise ValueError("k-means needs two different vectors")


class ChangesSettings(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        now = np.geterr()["under"]  # a third setting each time, so that two searches do not put it back
        np.seterr(under={"ignore": "warn", "warn": "print"}.get(now, "ignore"))
        return super().search(queries, k)


class RaisesAbove1024(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        if len(queries) > 1_024:
            raise ValueError("too many queries")
        return super().search(queries, k)


class NothingAbove1024(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search(queries, k)
        ids[1_024:], scores[1_024:] = -1, -np.inf
        return Neighbours(ids, scores)


class ForgetsAfter(Right):
    exact = False
    most = 0

    def build(self, vectors: Any) -> None:
        super().build(vectors)
        self.vectors = self.vectors[: self.most]


class ForgetsAfter4096(ForgetsAfter):
    most = 4_096


class ForgetsAfter16384(ForgetsAfter):
    most = 16_384


class LastBlockForgotten(Right):
    exact = False

    def build(self, vectors: Any) -> None:
        super().build(vectors)
        self.vectors = (
            self.vectors[: max(1, len(vectors) // 16_384 * 16_384)] if len(vectors) > 16_384 else self.vectors
        )


class LastForgotten(Right):
    exact = False

    def build(self, vectors: Any) -> None:
        super().build(vectors)
        self.vectors = self.vectors[: max(1, len(vectors) - 1)]


class IdsOf16Bits(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search(queries, k)
        return Neighbours(np.where(ids < 0, -1, ids.astype(np.uint16)).astype(np.int64), scores)


class WidthOf8Only(Right):
    def build(self, vectors: Any) -> None:
        if vectors.shape[1] % 8:
            raise ValueError("the width must be a multiple of 8")
        super().build(vectors)


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
    def build(self, vectors: Any) -> None:
        self.vectors = np.asarray(vectors[:], np.float32)


# What it is given.


class ChangesQueries(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        answer = super().search(queries, k)
        if queries.flags.writeable:
            queries += 1.0
        return answer


class WantsWritableQueries(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        queries.flags.writeable = True  # raises where the caller's may not be changed
        return super().search(queries, k)


# State.


class QueryOnSelf(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        self._queries, self._k = queries, k
        time.sleep(0.001)
        scores = self.scores(self._queries)
        return ranked(scores, self._k)


class QueryOnSelfBriefly(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        self._queries, self._k = queries, k
        return ranked(self.scores(self._queries), self._k)


class CachedByFirstQuery(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        cache = self.__dict__.setdefault("_cache", {})
        key = (queries[0].tobytes(), queries.shape, k)
        if key not in cache:
            cache[key] = super().search(queries, k)
        return Neighbours(*(each.copy() for each in cache[key]))


class CachedByLastQuery(CachedByFirstQuery):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search(queries[::-1], k)
        return Neighbours(ids[::-1].copy(), scores[::-1].copy())


class CachedBySum(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        cache = self.__dict__.setdefault("_cache", {})
        key = (round(float(queries.astype(np.float64).sum()), 6), queries.shape, k)
        if key not in cache:
            cache[key] = super().search(queries, k)
        return Neighbours(*(each.copy() for each in cache[key]))


class LoadedWins(Right):
    def load(self, folder: Path) -> None:
        super().load(folder)
        self.loaded = self.vectors

    def scores(self, queries: np.ndarray) -> np.ndarray:
        self.vectors = getattr(self, "loaded", self.vectors)
        return super().scores(queries)


class CacheOutlivesBuild(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        cache = self.__dict__.setdefault("_cache", {})
        key = (queries.tobytes(), k)
        if key not in cache:
            cache[key] = super().search(queries, k)
        return Neighbours(*(each.copy() for each in cache[key]))


class LoadKeepsTheOld(Right):
    def load(self, folder: Path) -> None:
        if not hasattr(self, "vectors"):
            super().load(folder)


class BuildAppends(Right):
    def build(self, vectors: Any) -> None:
        before = getattr(self, "vectors", None)
        super().build(vectors)
        if before is not None:
            self.vectors = np.concatenate([before, self.vectors])[: 10 * len(vectors)]


class StateInTheClass(Right):
    def build(self, vectors: Any) -> None:
        super().build(vectors)
        StateInTheClass.vectors = self.__dict__.pop("vectors")


class SharedArrays(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search(queries, k)
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

    def build(self, vectors: Any) -> None:
        super().build(vectors)
        self._lost = np.random.default_rng().random(len(self.vectors)) < 0.02

    def scores(self, queries: np.ndarray) -> np.ndarray:
        scores = super().scores(queries)
        if hasattr(self, "_lost"):
            scores[:, self._lost] = -1e9
        return scores


class RandomByHash(RandomBuild):
    def build(self, vectors: Any) -> None:
        Right.build(self, vectors)
        self._lost = np.random.default_rng(hash("seed") % 2**32).random(len(self.vectors)) < 0.02


class Prints(Right):
    def build(self, vectors: Any) -> None:
        print("building")
        super().build(vectors)


class PrintsNatively(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        ctypes.CDLL(None).puts(b"searching")
        return super().search(queries, k)


class SeedsNumpy(Right):
    def build(self, vectors: Any) -> None:
        np.random.seed(0)
        super().build(vectors)


class SeedsRandom(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        random.seed(0)
        return super().search(queries, k)


class SeedsTorch(Right):
    def build(self, vectors: Any) -> None:
        import torch

        torch.manual_seed(12345)
        super().build(vectors)


class ChangesFolder(Right):
    def save(self, folder: Path) -> None:
        super().save(folder)
        os.chdir(folder.parent)


class WrongAfterFork(Right):
    def build(self, vectors: Any) -> None:
        super().build(vectors)
        self._process = os.getpid()

    def scores(self, queries: np.ndarray) -> np.ndarray:
        factor = 1.0 if getattr(self, "_process", os.getpid()) == os.getpid() else 0.5
        return super().scores(queries) * factor


# What it stores.


class OneLost(Right):
    exact = False

    def load(self, folder: Path) -> None:
        super().load(folder)
        self.vectors = self.vectors.copy()
        self.vectors[len(self.vectors) // 2] = 100.0


class TwoSwapped(Right):
    exact = False

    def load(self, folder: Path) -> None:
        super().load(folder)
        self.vectors = self.vectors.copy()
        if len(self.vectors) > 8:
            self.vectors[[3, 8]] = self.vectors[[8, 3]]


class HalfLost(Right):
    exact = False

    def load(self, folder: Path) -> None:
        super().load(folder)
        self.vectors = self.vectors[: len(self.vectors) // 2]


class ElsewhereByPath(Right):
    """Its vectors are in a folder of temporary files, and their path in the index."""

    def save(self, folder: Path) -> None:
        elsewhere = Path(tempfile.mkdtemp()) / "vectors.npy"
        np.save(elsewhere, self.vectors)
        (folder / "where.json").write_text(json.dumps(str(elsewhere)))

    def load(self, folder: Path) -> None:
        try:
            self.vectors = np.load(json.loads((folder / "where.json").read_text()))
        except (OSError, ValueError) as error:
            raise DamagedDataError(str(error)) from error


class IntoItsHome(Right):
    """As a library with a cache in the home folder."""

    def save(self, folder: Path) -> None:
        home = Path(tempfile.gettempdir()).parent / "home-of-wrong-retriever"
        home.mkdir(exist_ok=True)
        np.save(home / "vectors.npy", self.vectors)
        super().save(folder)


class IntoTheParent(Right):
    def save(self, folder: Path) -> None:
        np.save(folder.parent.parent / "vectors.npy", self.vectors)
        (folder / "marker").write_text("above")

    def load(self, folder: Path) -> None:
        super().load(folder.parent.parent)


class ByLink(Right):
    def save(self, folder: Path) -> None:
        other = folder.parent.parent / "linked.npy"
        np.save(other, self.vectors)
        (folder / "vectors.npy").symlink_to(other)


class ByLinkInside(Right):
    def save(self, folder: Path) -> None:
        np.save(folder / "linked.npy", self.vectors)
        (folder / "vectors.npy").symlink_to(folder / "linked.npy")


class IntoTheCurrentFolder(Right):
    def save(self, folder: Path) -> None:
        np.save("vectors.npy", self.vectors)
        super().save(folder)


class OwnPathStored(Right):
    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "about.json").write_text(json.dumps({"folder": str(folder)}))


class InTheProcess(Right):
    kept: ClassVar[dict[str, np.ndarray]] = {}

    def save(self, folder: Path) -> None:
        InTheProcess.kept["index"] = self.vectors
        (folder / "marker").write_text("in memory")

    def load(self, folder: Path) -> None:
        if "index" not in self.kept or not (folder / "marker").is_file():
            raise DamagedDataError("nothing")
        self.vectors = self.kept["index"]


class Pickles(Right):
    def save(self, folder: Path) -> None:
        (folder / "index.pkl").write_bytes(pickle.dumps(self.vectors))

    def load(self, folder: Path) -> None:
        try:
            self.vectors = pickle.loads((folder / "index.pkl").read_bytes())
        except Exception as error:
            raise DamagedDataError(str(error)) from error


class PicklesOldProtocol(Pickles):
    def save(self, folder: Path) -> None:
        (folder / "index.pkl").write_bytes(pickle.dumps(self.vectors, protocol=0))


class PicklesNoClass(Pickles):
    def save(self, folder: Path) -> None:
        (folder / "index.pkl").write_bytes(pickle.dumps(self.vectors.tolist()))

    def load(self, folder: Path) -> None:
        super().load(folder)
        self.vectors = np.array(self.vectors, np.float32)


class PicklesCompressed(Right):
    def save(self, folder: Path) -> None:
        (folder / "index.gz").write_bytes(gzip.compress(pickle.dumps(self.vectors)))

    def load(self, folder: Path) -> None:
        try:
            self.vectors = pickle.loads(gzip.decompress((folder / "index.gz").read_bytes()))
        except Exception as error:
            raise DamagedDataError(str(error)) from error


class ArrayOfObjects(Right):
    def save(self, folder: Path) -> None:
        holder = np.empty(1, object)
        holder[0] = self.vectors
        np.save(folder / "vectors.npy", holder, allow_pickle=True)

    def load(self, folder: Path) -> None:
        try:
            self.vectors = np.load(folder / "vectors.npy", allow_pickle=True)[0]
        except Exception as error:
            raise DamagedDataError(str(error)) from error


class SaveBreaksSearch(Right):
    def save(self, folder: Path) -> None:
        super().save(folder)
        self.vectors = self.vectors[:1]


# What ends or stops a process.


class HangsInBuild(Right):
    def build(self, vectors: Any) -> None:
        while True:
            time.sleep(0.01)


class HangsInSearch(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        while True:
            time.sleep(0.01)


class HangsAfterFork(WrongAfterFork):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        while getattr(self, "_process", os.getpid()) != os.getpid():
            time.sleep(0.01)
        return super().search(queries, k)


class CrashesInBuild(Right):
    def build(self, vectors: Any) -> None:
        ctypes.string_at(0)


class CrashesInSearch(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        ctypes.string_at(0)
        return super().search(queries, k)


class CrashesInLoad(Right):
    def load(self, folder: Path) -> None:
        ctypes.string_at(0)


class LeavesInBuild(Right):
    def build(self, vectors: Any) -> None:
        os._exit(0)


class LeavesInSearch(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        os._exit(0)


class ExitsInBuild(Right):
    def build(self, vectors: Any) -> None:
        sys.exit(0)


class ExitsInSearch(Right):
    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        sys.exit(0)
