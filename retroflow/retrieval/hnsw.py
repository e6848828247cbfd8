"""hnswlib: a navigable small-world graph over float32 vectors.

This file hides the peculiarities of hnswlib: an exception if fewer than k are found, no check of a query's width (a
wrong one reads past the buffer), files that store neither width nor metric, labels in uint64, `ef` as state of the
index.

Shapes: q queries, N vectors, D embedding width, k neighbours.
"""

import json
import math
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import hnswlib  # type: ignore[import-untyped]
import numpy as np
from annotated_types import Ge, Le

from retroflow.errors import DamagedDataError, RetrieverError
from retroflow.options import Seed, checked_options
from retroflow.protocols import (
    Capabilities,
    Float32Array,
    IndexOutline,
    Int64Array,
    KeySource,
    Neighbours,
    Queries,
)

FILE = "index.hnsw"
DESCRIPTION_FILE = "hnsw.json"
ADD_ROWS = 16_384

SWEEP = (10, 16, 32, 64, 128, 256, 512)
"""Values of `search.ef` that `retroflow bench` measures."""

_VERTEX_BYTES = 130
"""Of a vector beside its numbers and links: label, lock, visited marks, hash table (hnswlib 0.8, hnswalg.h)."""


@checked_options("retriever.build")
@dataclass(frozen=True, kw_only=True)
class HnswBuild:
    """Options that change the index.

    Attributes:
        metric: "l2" (minus the squared distance) or "inner_product".
        links: links of a vertex (M in the paper); memory is about 8 links + 4 D bytes per vector.
        ef_construction: candidates kept while inserting.
        seed: of the vertices' levels.
        deterministic: insert with one thread, so that two builds are equal byte by byte.
    """

    metric: Literal["l2", "inner_product"] = "l2"
    links: Annotated[int, Ge(2)] = 16
    ef_construction: Annotated[int, Ge(1)] = 100
    seed: Seed = 1234
    deterministic: bool = True


@checked_options("retriever.search")
@dataclass(frozen=True, kw_only=True)
class HnswSearch:
    """Options that change recall and speed of a search, never the index.

    Attributes:
        ef: candidates kept while walking the graph; at least k is used.
        num_threads: of a search, and of a build unless it is deterministic; -1 = all cores.
    """

    ef: Annotated[int, Ge(1)] = 64
    num_threads: Annotated[int, Ge(-1), Le(1024)] = -1


class HnswRetriever:
    """Search by hnswlib. Vectors are kept as float32 in memory, 4 N D bytes and the graph."""

    def __init__(self, *, build: HnswBuild | None = None, search: HnswSearch | None = None) -> None:
        self._build = build or HnswBuild()
        self._search = search or HnswSearch()
        self._index: Any = None
        self._num_removed = 0
        self.capabilities = Capabilities(
            metric=self._build.metric,
            exact=False,
            deterministic=self._build.deterministic,
            fork_safe=True,
            add=True,
            remove=True,
        )

    def outline(self, count: int, dimension: int) -> IndexOutline:
        """As in `OutlinesIndex`: level 0 has 2 links per vertex of 4 bytes, levels above about a quarter more."""
        stored = 4 * dimension + 9 * self._build.links
        memory = count * (stored + _VERTEX_BYTES) + ADD_ROWS * 6 * dimension
        settings = [{"ef": ef} for ef in SWEEP if ef <= 10 * count]
        kind = f"HNSW graph, {self._build.links} links"
        levels = math.log2(max(2, count))
        return IndexOutline(
            kind=kind,
            building=memory,
            searching=memory,
            disk=count * stored,
            settings=settings,
            compared=self._build.links * (self._search.ef + levels),
            compared_to_add=self._build.links * (self._build.ef_construction + levels),
        )

    def build(self, keys: KeySource) -> None:
        """Insert vectors [N, D] block by block."""
        index = hnswlib.Index(self._space(), keys.vectors.shape[1])
        index.init_index(
            max_elements=len(keys),
            M=self._build.links,
            ef_construction=self._build.ef_construction,
            random_seed=self._build.seed,
        )
        index.set_ef(self._search.ef)
        self._index, self._num_removed = index, 0
        self.add(keys)

    def add(self, keys: KeySource) -> None:
        """Insert further vectors [M, D]; see `AddsKeys`."""
        vectors, first = keys.vectors, self._index.get_current_count()
        self._index.resize_index(first + len(vectors))
        threads = 1 if self._build.deterministic else self._search.num_threads
        for start in range(0, len(vectors), ADD_ROWS):
            block = np.ascontiguousarray(vectors[start : start + ADD_ROWS], dtype=np.float32)
            ids = np.arange(first + start, first + start + len(block))
            self._index.add_items(block, ids, num_threads=threads)

    def remove(self, ids: Int64Array) -> None:
        """Mark vectors as deleted: searches still walk over them, and they stay in the file; see `RemovesKeys`."""
        for number in ids.tolist():
            self._index.mark_deleted(number)
        self._num_removed += len(ids)

    def search(self, queries: Queries, k: int) -> Neighbours:
        """Search queries float32 [q, D]; several threads may search at once."""
        vectors = queries.vectors
        if self._index is None:
            raise RetrieverError("hnsw: build() or load() comes before search().")
        available = min(k, self._index.get_current_count() - self._num_removed)
        try:
            # The library itself searches with max(ef, k), so nothing is set on the index, which all threads use.
            found, distances = self._index.knn_query(vectors, k=available, num_threads=self._search.num_threads)
            ids = found.view(np.int64)
        except RuntimeError:  # if one row reaches fewer than k vertices, the library fails for the whole batch
            ids, distances = _padded(len(vectors), k)
            for row in range(len(vectors)):
                labels, nearest = self._reachable(vectors[row : row + 1], available)
                ids[row, : len(labels)], distances[row, : len(labels)] = labels, nearest
        if ids.shape[1] < k:
            few, near = ids, distances
            ids, distances = _padded(len(vectors), k)
            ids[:, :available], distances[:, :available] = few, near
        return Neighbours(ids, -distances if self._build.metric == "l2" else 1.0 - distances)

    def save(self, folder: Path) -> None:
        """Write index.hnsw, and hnsw.json with the width, metric and count that the library does not store."""
        if self._index is None:
            raise RetrieverError("hnsw: build() or load() comes before save().")
        try:
            self._index.save_index(str(folder / FILE))
        except RuntimeError as error:
            raise OSError(f'hnswlib could not write "{folder / FILE}": {error}') from error
        description = {
            "dimension": self._index.dim,
            "count": self._index.get_current_count(),
            "removed": self._num_removed,
            "hnswlib": version("hnswlib"),
            "build": asdict(self._build),
        }
        (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; files that are not that raise DamagedDataError."""
        path = folder / FILE
        try:
            description = json.loads((folder / DESCRIPTION_FILE).read_text("utf-8"))
            # hnswlib trusts the lengths in its file; CheckedRetriever has checked that the bytes are the saved ones.
            if description["build"]["metric"] != self._build.metric:
                raise ValueError(f'it was built with metric "{description["build"]["metric"]}"')
            index = hnswlib.Index(self._space(), description["dimension"])
            index.load_index(str(path), max_elements=description["count"])
            num_removed = int(description["removed"])
            if index.get_current_count() != description["count"]:
                raise ValueError(f"{path.name} holds {index.get_current_count()} vectors, not {description['count']}")
        except (RuntimeError, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
            raise DamagedDataError(f'hnsw: the index in "{folder}" cannot be read: {error}') from error
        index.set_ef(self._search.ef)
        self._index, self._num_removed = index, num_removed

    def fingerprint(self) -> dict[str, object]:
        """Build options and the library version (major.minor)."""
        return {
            "backend": "hnsw",
            "version": ".".join(version("hnswlib").split(".")[:2]),
            "build": asdict(self._build),
        }

    def _reachable(self, query: Float32Array, k: int) -> tuple[Any, Any]:
        """Return labels and distances of up to k vectors for query [1, D]; fewer if the graph is not connected."""
        low, high, best = 0, k, (np.empty(0, np.int64), np.empty(0, np.float32))
        while low < high:  # the largest k that hnswlib can answer; every smaller k works
            middle = (low + high + 1) // 2
            try:
                labels, distances = self._index.knn_query(query, k=middle, num_threads=1)
            except RuntimeError:
                high = middle - 1
            else:
                low, best = middle, (labels[0], distances[0])
        return best

    def _space(self) -> str:
        return "l2" if self._build.metric == "l2" else "ip"


def _padded(rows: int, k: int) -> tuple[Int64Array, Float32Array]:
    """Return labels and distances [rows, k] of nothing found."""
    return np.full((rows, k), -1, np.int64), np.full((rows, k), np.inf, np.float32)
