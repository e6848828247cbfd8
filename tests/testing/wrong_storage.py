"""Retrievers that are wrong in one way each: in what they store and read."""

import gzip
import json
import pickle
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from retroflow.errors import DamagedDataError
from retroflow.protocols import KeySource
from tests.testing.right_retriever import Right

# What it stores.


class InShards(Right):
    """Trained it knows a factor; filled, the vectors by it. Correct in everything."""

    def divides(self, count: int, dimension: int) -> bool:
        return True

    def train(self, keys: KeySource, folder: Path) -> None:
        np.save(folder / "factor.npy", np.float32(2.0))

    def open_trained(self, folder: Path) -> None:
        self.factor = np.load(folder / "factor.npy")

    def fill(self, keys: KeySource) -> dict[str, np.ndarray]:
        return {"doubled": keys.vectors[:].astype(np.float32) * self.factor}

    def merge(self, shards: Callable[[], Iterable[Mapping[str, np.ndarray]]]) -> None:
        self.vectors = np.concatenate([shard["doubled"] for shard in shards()]) / self.factor


class ShardsForgetTheLast(InShards):
    def merge(self, shards: Callable[[], Iterable[Mapping[str, np.ndarray]]]) -> None:
        parts = list(shards())
        super().merge(lambda: [*parts[:-1], {"doubled": parts[0]["doubled"][: len(parts[-1]["doubled"])]}])


class FillsByWhatTrainingLeftInTheInstance(InShards):
    def train(self, keys: KeySource, folder: Path) -> None:
        super().train(keys, folder)
        self.factor = np.float32(2.0)

    def open_trained(self, folder: Path) -> None:
        pass


class ShardsHaveRowsTooFew(InShards):
    def fill(self, keys: KeySource) -> dict[str, np.ndarray]:
        return {"doubled": super().fill(keys)["doubled"][1:]}


class ShardsMergeToOtherFiles(InShards):
    def merge(self, shards: Callable[[], Iterable[Mapping[str, np.ndarray]]]) -> None:
        super().merge(shards)
        self.vectors = np.asfortranarray(self.vectors)


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
