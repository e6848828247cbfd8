"""Retrievers whose keys can be added and removed: one that is correct, and those that are wrong in one way each."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from retroflow.errors import DamagedDataError
from retroflow.protocols import Capabilities, Int64Array, KeySource, Neighbours, Queries
from tests.testing.right_retriever import Build, Right, Search, ranked


class Changing(Right):
    """Brute force over vectors with ids of their own."""

    erases = True

    def __init__(self, *, build: Build | None = None, search: Search | None = None) -> None:
        super().__init__(build=build, search=search)
        self.capabilities = Capabilities(exact=True, add=True, remove=True, erases=self.erases, fork_safe=True)

    def build(self, keys: KeySource) -> None:
        super().build(keys)
        self.ids, self.next_id = np.arange(len(keys)), len(keys)

    def add(self, keys: KeySource) -> None:
        self.vectors = np.concatenate([self.vectors, keys.vectors[0 : len(keys)].astype(np.float32)])
        self.ids = np.append(self.ids, np.arange(self.next_id, self.next_id + len(keys)))
        self.next_id += len(keys)

    def remove(self, ids: Int64Array) -> None:
        self.keep(~np.isin(self.ids, ids))

    def keep(self, kept: Any) -> None:
        self.vectors, self.ids = self.vectors[kept], self.ids[kept]

    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        rows, scores = super().search_vectors(queries, k)
        return Neighbours(np.where(rows < 0, -1, self.ids[rows]), scores)

    def save(self, folder: Path) -> None:
        super().save(folder)
        np.save(folder / "ids.npy", np.append(self.ids, self.next_id))

    def load(self, folder: Path) -> None:
        super().load(folder)
        try:
            *_, self.next_id = numbers = np.load(folder / "ids.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DamagedDataError(str(error)) from error
        self.ids = numbers[:-1]


class OnlyAdds(Changing):
    def __init__(self, *, build: Build | None = None, search: Search | None = None) -> None:
        super().__init__(build=build, search=search)
        self.capabilities = Capabilities(exact=True, add=True, fork_safe=True)


class IdsShift(Changing):
    def remove(self, ids: Int64Array) -> None:
        super().remove(ids)
        self.ids = np.arange(len(self.ids))


class RemovedComeBackAfterLoading(Changing):
    def build(self, keys: KeySource) -> None:
        super().build(keys)
        self.gone = np.empty(0, np.int64)

    def remove(self, ids: Int64Array) -> None:
        self.gone = np.append(self.gone, ids)

    def load(self, folder: Path) -> None:
        super().load(folder)
        self.gone = np.empty(0, np.int64)

    def search(self, queries: Queries, k: int) -> Neighbours:
        scores = np.where(np.isin(self.ids, self.gone), -np.inf, self.scores(queries.vectors))
        rows, found = ranked(scores, k)
        return Neighbours(np.where(found == -np.inf, -1, self.ids[rows]), found)


class AddedAreLostInSaving(Changing):
    def build(self, keys: KeySource) -> None:
        super().build(keys)
        self.num_built = len(keys)

    def save(self, folder: Path) -> None:
        everything = self.vectors, self.ids
        self.keep(self.ids < self.num_built)
        super().save(folder)
        self.vectors, self.ids = everything

    def load(self, folder: Path) -> None:
        super().load(folder)
        self.num_built = self.next_id


class ChangesStayInTheProcess(Changing):
    latest: ClassVar[dict[int, Any]] = {}

    def add(self, keys: KeySource) -> None:
        saved = self.vectors, self.ids
        super().add(keys)
        self.latest[self.next_id] = self.vectors, self.ids
        self.unsaved = saved

    def save(self, folder: Path) -> None:
        everything = self.vectors, self.ids
        self.vectors, self.ids = getattr(self, "unsaved", everything)
        super().save(folder)
        self.vectors, self.ids = everything

    def load(self, folder: Path) -> None:
        super().load(folder)
        self.vectors, self.ids = self.latest.get(self.next_id, (self.vectors, self.ids))


class KeepsTheLast(Changing):
    def remove(self, ids: Int64Array) -> None:
        super().remove(ids[ids != self.next_id - 1])


class FailsWithoutKeys(Changing):
    def save(self, folder: Path) -> None:
        self.vectors.max()
        super().save(folder)


class ReusesIds(Changing):
    def add(self, keys: KeySource) -> None:
        self.next_id = int(self.ids.max(initial=-1)) + 1
        super().add(keys)


class ReusesIdsAfterLoading(Changing):
    def load(self, folder: Path) -> None:
        super().load(folder)
        self.next_id = int(self.ids.max(initial=-1)) + 1


class AddReplaces(Changing):
    def add(self, keys: KeySource) -> None:
        first = self.next_id
        self.build(keys)
        self.ids, self.next_id = self.ids + first, self.next_id + first


class AddsTheFirstKeyOnly(Changing):
    def add(self, keys: KeySource) -> None:
        super().add(keys)
        self.keep(self.ids <= self.next_id - len(keys))


class KeepsTheBytes(RemovedComeBackAfterLoading):
    """Correct but for what it declares."""

    def save(self, folder: Path) -> None:
        super().save(folder)
        np.save(folder / "gone.npy", self.gone)

    def load(self, folder: Path) -> None:
        super().load(folder)
        self.gone = np.load(folder / "gone.npy")
