"""usearch as a retriever for retroflow: an HNSW graph whose vectors may be half precision, opened by memory map.

Everything particular to usearch ends here: id 0 with NaN where there is no neighbour, keys in uint64, an answer of
another type for one query, rows that must be C-contiguous.

Shapes: q queries, N vectors, D embedding width, k neighbours.
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge
from usearch.index import Index

from retroflow.errors import DamagedDataError, RetrieverError
from retroflow.protocols import Capabilities, IndexOutline, Int64Array, KeySource, Neighbours, Queries

FILE, NEXT_ID_FILE = "index.usearch", "next_id.txt"
ADD_ROWS = 16_384

SWEEP = (10, 16, 32, 64, 128, 256, 512)
"""Values of `search.expansion_search` that `retroflow bench` measures."""


@dataclass(frozen=True, kw_only=True)
class UsearchBuild:
    """Options that change the index.

    Attributes:
        metric: "l2" (minus the squared distance) or "inner_product".
        dtype: how vectors are kept; "f16" is what an embedding store holds, at half the bytes of "f32".
        connectivity: links of a vertex (M of the HNSW paper).
        expansion_add: candidates kept while inserting.
        num_threads: inserting threads; only 1 makes two builds equal.
    """

    metric: Literal["l2", "inner_product"] = "l2"
    dtype: Literal["f32", "f16", "bf16"] = "f16"
    connectivity: Annotated[int, Ge(1)] = 16
    expansion_add: Annotated[int, Ge(1)] = 128
    num_threads: Annotated[int, Ge(0)] = 1


@dataclass(frozen=True, kw_only=True)
class UsearchSearch:
    """Options that change recall and speed of a search, never the index.

    Attributes:
        expansion_search: candidates kept while walking the graph; at least k is used.
        num_threads: searching threads; 0 = all cores.
    """

    expansion_search: Annotated[int, Ge(1)] = 64
    num_threads: Annotated[int, Ge(0)] = 0


class UsearchRetriever:
    """Search by usearch."""

    def __init__(self, *, build: UsearchBuild | None = None, search: UsearchSearch | None = None) -> None:
        self._build = build or UsearchBuild()
        self._search = search or UsearchSearch()
        self._index: Any = None
        self._next_id, self._is_mapped = 0, False
        self.capabilities = Capabilities(
            metric=self._build.metric,
            exact=False,
            deterministic=self._build.num_threads == 1,
            fork_safe=True,
            add=True,
            remove=True,
        )

    def outline(self, count: int, dimension: int) -> IndexOutline:
        """As in `OutlinesIndex`: level 0 has 2 links per vertex of 5 bytes, levels above about a fifth more."""
        value_bytes = {"f32": 4, "f16": 2, "bf16": 2}[self._build.dtype]
        stored = count * (value_bytes * dimension + 12 * self._build.connectivity + 16)
        return IndexOutline(
            kind=f"HNSW graph, {self._build.connectivity} links",
            building=stored + ADD_ROWS * 4 * dimension,
            searching=stored,
            disk=stored,
            settings=[{"expansion_search": value} for value in SWEEP],
        )

    def build(self, keys: KeySource) -> None:
        """Insert vectors [N, D] block by block."""
        self._index = Index(
            ndim=keys.vectors.shape[1],
            metric="l2sq" if self._build.metric == "l2" else "ip",
            dtype=self._build.dtype,
            connectivity=self._build.connectivity,
            expansion_add=self._build.expansion_add,
            expansion_search=self._search.expansion_search,
        )
        self._next_id, self._is_mapped = 0, False
        self.add(keys)

    def add(self, keys: KeySource) -> None:
        """Insert further vectors [M, D]; see `AddsKeys`."""
        self._bring_into_memory()
        vectors = keys.vectors
        for start in range(0, len(vectors), ADD_ROWS):
            block = np.ascontiguousarray(vectors[start : start + ADD_ROWS], dtype=np.float32)
            ids = np.arange(self._next_id, self._next_id + len(block), dtype=np.uint64)
            self._index.add(ids, block, threads=self._build.num_threads)
            self._next_id += len(block)

    def remove(self, ids: Int64Array) -> None:
        """Remove vectors; the file keeps their bytes until others take their place; see `RemovesKeys`."""
        self._bring_into_memory()
        self._index.remove(ids.astype(np.uint64))

    def _bring_into_memory(self) -> None:
        if self._is_mapped:  # the library ends the process where a mapped index is changed
            self._index, self._is_mapped = self._index.copy(), False
            self._index.expansion_search = self._search.expansion_search

    def search(self, queries: Queries, k: int) -> Neighbours:
        """Search queries float32 [q, D]; several threads may search at once."""
        vectors = queries.vectors
        if self._index is None:
            raise RetrieverError("usearch: build() or load() comes before search().")
        found = self._index.search(vectors, k, threads=self._search.num_threads)
        ids = np.full((len(vectors), k), -1, np.int64)
        scores = np.full((len(vectors), k), -np.inf, np.float32)
        # One query gives Matches, as long as what was found; several give BatchMatches, padded with key 0 and NaN.
        counts = [len(found)] if len(vectors) == 1 else found.counts
        valid = np.arange(k) < np.reshape(counts, (-1, 1))
        keys, distances = (
            (found.keys, found.distances) if len(vectors) == 1 else (found.keys[valid], found.distances[valid])
        )
        ids[valid] = keys
        scores[valid] = np.minimum(-distances, 0.0) if self._build.metric == "l2" else 1.0 - distances
        return Neighbours(ids, scores)

    def save(self, folder: Path) -> None:
        """Write index.usearch, and beside it the next id, which the library does not keep."""
        if self._index is None:
            raise RetrieverError("usearch: build() or load() comes before save().")
        self._index.save(str(folder / FILE))
        (folder / NEXT_ID_FILE).write_text(f"{self._next_id}\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Memory-map what `save` wrote."""
        try:
            next_id = int((folder / NEXT_ID_FILE).read_text(encoding="utf-8"))
            index = Index.restore(str(folder / FILE), view=True)
        except (RuntimeError, OSError, ValueError) as error:
            raise DamagedDataError(f'usearch: "{folder / FILE}" cannot be read: {error}') from error
        if index is None:
            raise DamagedDataError(f'usearch: "{folder / FILE}" is no index of usearch.')
        index.expansion_search = self._search.expansion_search
        self._index, self._next_id, self._is_mapped = index, next_id, True

    def fingerprint(self) -> dict[str, object]:
        """The library's version (major.minor); retroflow adds the options."""
        return {"usearch": ".".join(version("usearch").split(".")[:2])}
