"""A retriever that is correct in everything, and some that are unusual and within the rules."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.errors import DamagedDataError
from retroflow.protocols import Capabilities, KeySource, Neighbours, Queries


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

    def build(self, keys: KeySource) -> None:
        self.build_vectors(keys.vectors)

    def search(self, queries: Queries, k: int) -> Neighbours:
        return self.search_vectors(queries.vectors, k)

    def build_vectors(self, vectors: Any) -> None:
        blocks = [vectors[start : start + 16_384] for start in range(0, len(vectors), 16_384)]
        self.vectors = np.concatenate(blocks).astype(np.float32)

    def scores(self, queries: np.ndarray) -> np.ndarray:
        products = queries @ self.vectors.T
        if self.metric == "inner_product":
            return products
        lengths = np.square(self.vectors).sum(axis=1) + np.square(queries).sum(axis=1)[:, None]
        return np.minimum(2 * products - lengths, 0.0)

    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
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
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        last = len(self.vectors) - 1
        ids, scores = ranked(self.scores(queries)[:, ::-1], k)
        return Neighbours(np.where(ids < 0, -1, last - ids), scores)


class OptionsInTheFingerprint(Right):
    def fingerprint(self) -> dict[str, object]:
        return {"build": asdict(self._build)}
