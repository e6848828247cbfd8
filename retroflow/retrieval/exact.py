"""Exact search by brute force in torch: the reference for every other backend, and enough for small databases.

No index is built: vectors are read in blocks from their source (a memory map stays on disk) and scored by matrix
products in float32. `save` writes them in their own dtype (float16 from an embedding store), so the index folder is as
large as the embeddings. Added vectors are a further source. Removed ones keep their place, so that ids stay: they are
passed over, and `save` writes zeros for them. Equal scores are ordered by ascending id.

Shapes: q queries, N vectors with removed ones, D embedding width, k neighbours, s vectors of a block.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray

from retroflow.devices import choose_device
from retroflow.errors import DamagedDataError, RetrieverError
from retroflow.options import checked_options
from retroflow.protocols import Capabilities, IndexOutline, Int64Array, KeySource, Neighbours, Queries, VectorSource
from retroflow.store.array_file import ArraySpec, ArrayWriter, release_pages

FILE, REMOVED_FILE = "vectors.npy", "removed.npy"
COPY_ROWS = 16_384


@checked_options("retriever.build")
@dataclass(frozen=True, kw_only=True)
class ExactBuild:
    """Options that change the stored vectors or the meaning of a score.

    Attributes:
        metric: "l2" (minus the squared distance) or "inner_product".
    """

    metric: Literal["l2", "inner_product"] = "l2"


@checked_options("retriever.search")
@dataclass(frozen=True, kw_only=True)
class ExactSearch:
    """Options that change speed and memory, never the answer.

    Attributes:
        device: "cpu", "cuda", or "auto": cuda if torch finds one.
        block_rows: vectors scored at once.
        query_rows: queries scored at once; query_rows x block_rows x 4 bytes is the largest intermediate.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    block_rows: Annotated[int, Ge(1)] = 16_384
    query_rows: Annotated[int, Ge(1)] = 1_024


class ExactRetriever:
    """Brute-force search. O(N D) per query; every answer is the true one up to float32 rounding."""

    def __init__(self, *, build: ExactBuild | None = None, search: ExactSearch | None = None) -> None:
        self._build = build or ExactBuild()
        self._search = search or ExactSearch()
        self._device = choose_device(self._search.device, "retriever.search.device")
        self._sources: list[VectorSource] = []
        self._removed = np.zeros(0, bool)  # [N], or empty if none was removed
        self._resident: torch.Tensor | None = None
        self.capabilities = Capabilities(
            metric=self._build.metric,
            exact=True,
            deterministic=True,
            # torch's OpenMP does not survive a fork after several threads have run in the parent.
            fork_safe=False,
            add=True,
            remove=True,
            erases=True,
            device=self._device,
        )

    def outline(self, count: int, dimension: int) -> IndexOutline:
        """As in `OutlinesIndex`: nothing is built, and vectors are read in blocks."""
        rows, queries = min(self._search.block_rows, count), self._search.query_rows
        block = rows * dimension * 6  # as float16 and as float32
        searching = block + rows * queries * 8  # products, and what topk copies of them
        disk = count * dimension * 2
        return IndexOutline(kind="no index", building=block, searching=searching, disk=disk, compared=count)

    def build(self, keys: KeySource) -> None:
        """Keep a reference to vectors [N, D]; read each block once, so that bad values are found now."""
        self._sources, self._removed = [], np.zeros(0, bool)
        self.add(keys)

    def add(self, keys: KeySource) -> None:
        """Keep a reference to vectors [M, D], too; see `AddsKeys`."""
        vectors = keys.vectors
        for start in range(0, len(vectors), COPY_ROWS):
            vectors[start : start + COPY_ROWS]
        self._sources, self._resident = [*self._sources, vectors], None
        if len(self._removed):
            self._removed = np.append(self._removed, np.zeros(len(vectors), bool))

    def remove(self, ids: Int64Array) -> None:
        """Pass over vectors from now on; see `RemovesKeys`."""
        if not len(self._removed):
            self._removed = np.zeros(self._layout()[1][0], bool)
        self._removed[ids] = True

    def search(self, queries: Queries, k: int) -> Neighbours:
        """Score queries float32 [q, D] against every vector and keep the k best."""
        vectors = queries.vectors
        ids = np.full((len(vectors), k), -1, np.int64)
        scores = np.full((len(vectors), k), -np.inf, np.float32)
        with _full_precision(self._device):
            for start in range(0, len(vectors), self._search.query_rows):
                rows = slice(start, start + self._search.query_rows)
                best_scores, best_ids = self._nearest(torch.tensor(vectors[rows]).to(self._device), k)
                ids[rows, : best_ids.shape[1]] = best_ids.cpu().numpy()
                scores[rows, : best_scores.shape[1]] = best_scores.cpu().numpy()
        ids[scores == -np.inf] = -1  # removed
        return Neighbours(ids, scores)

    def save(self, folder: Path) -> None:
        """Write vectors.npy in the dtype of the source, block by block; a full disk raises OSError before any."""
        dtype, shape = self._layout()
        writer = ArrayWriter(folder, ArraySpec(FILE, dtype, shape))
        try:
            for start, block in self._read(COPY_ROWS):
                rows = self._removed[start : start + len(block)]
                kept = np.where(rows[:, None], 0, block) if rows.any() else block
                writer.write(start, kept.astype(dtype, copy=False))
        finally:
            writer.close()
        if len(self._removed):
            np.save(folder / REMOVED_FILE, self._removed)

    def load(self, folder: Path) -> None:
        """Memory-map what `save` wrote."""
        path = folder / REMOVED_FILE
        try:
            vectors = np.load(folder / FILE, mmap_mode="r", allow_pickle=False)
            removed = np.load(path, allow_pickle=False) if path.exists() else np.zeros(0, bool)
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise DamagedDataError(f'exact: the index in "{folder}" cannot be read: {error}') from error
        if vectors.ndim != 2 or vectors.dtype not in (np.float16, np.float32):
            raise DamagedDataError(
                f'exact: "{folder / FILE}" holds {vectors.dtype} {list(vectors.shape)}, not vectors.'
            )
        self._sources, self._removed, self._resident = [vectors], removed, None

    def fingerprint(self) -> dict[str, object]:
        """Return build options; the arithmetic does not depend on the version of torch."""
        return {"backend": "exact", "build": asdict(self._build)}

    def _layout(self) -> tuple[np.dtype[Any], tuple[int, int]]:
        """Return the dtype and the shape [N, D] of all sources together."""
        if not self._sources:
            raise RetrieverError("exact: build() or load() comes before search() and save().")
        dtype = np.result_type(*(source[0:0].dtype for source in self._sources))
        return dtype, (sum(map(len, self._sources)), self._sources[0].shape[1])

    def _nearest(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores float32 and ids int64 [q, min(k, N)] of the best vectors of queries [q, D]."""
        scores = queries.new_empty((len(queries), 0))  # [q, 0]
        ids = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
        for start, block in self._blocks():
            block_scores = self._scores(queries, block)  # [q, s]
            if len(self._removed):
                removed = torch.from_numpy(self._removed[start : start + len(block)]).to(self._device)
                block_scores = block_scores.masked_fill(removed, -torch.inf)
            block_scores, block_ids = _best_of(block_scores, k)  # [q, min(k, s)]
            scores = torch.cat([scores, block_scores], dim=1)
            ids = torch.cat([ids, block_ids + start], dim=1)
            # Stable: among equals a vector of an earlier block, with a smaller id, stays first.
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            scores, ids = scores[:, :k], ids.gather(1, order[:, :k])
        if self._build.metric == "l2":
            scores = (scores - queries.square().sum(dim=1, keepdim=True)).clamp_(max=0.0)
        return scores, ids

    def _scores(self, queries: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        """Score queries [q, D] against block [s, D]; l2 leaves out the query's own square, equal along a row."""
        products = queries @ block.T  # [q, s]
        if self._build.metric == "inner_product":
            return products
        return products.mul_(2.0).sub_(block.square().sum(dim=1))

    def _read(self, rows: int) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """Yield (first id, vectors [s, D]) of the sources in their dtypes."""
        first = 0
        for source in self._sources:
            for start in range(0, len(source), rows):
                yield first + start, source[start : start + rows]
                if isinstance(source, np.memmap):
                    release_pages(source)  # or a whole pass would leave all of the file in memory
            first += len(source)

    def _blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first id, float32 block [s, D] on the device), kept there if half its free memory is enough."""
        dtype, shape = self._layout()
        if self._device == "cuda" and self._resident is None:
            self._resident = self._upload(dtype, shape)
        rows = self._search.block_rows
        if self._resident is not None:
            for start in range(0, len(self._resident), rows):
                yield start, self._resident[start : start + rows].float()
            return
        for start, block in self._read(rows):
            # A copy: torch refuses read-only maps, whose pages are released besides.
            yield start, torch.from_numpy(np.array(block, dtype=np.float32)).to(self._device)

    def _upload(self, dtype: np.dtype[Any], shape: tuple[int, int]) -> torch.Tensor | None:
        """Copy the vectors to the GPU in their own dtype; None if half the free memory is too small."""
        free_bytes, _ = torch.cuda.mem_get_info()
        if math.prod(shape) * dtype.itemsize > free_bytes // 2:
            return None
        resident = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, device="cuda")
        for start, block in self._read(COPY_ROWS):
            resident[start : start + len(block)] = torch.from_numpy(np.array(block)).to("cuda")
        return resident


def _best_of(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k best of scores [q, s] and their columns, best first, equal scores by ascending column.

    torch.topk picks arbitrarily among equals; rows where more than k reach the k-th score are sorted in full.
    """
    k = min(k, scores.shape[1])
    best, columns = scores.topk(k, dim=1)
    tied = (scores >= best[:, -1:]).sum(dim=1) > k  # [q]
    columns, order = columns.sort(dim=1)
    best, order = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    if tied.any():
        full, positions = scores[tied].sort(dim=1, descending=True, stable=True)
        best[tied], columns[tied] = full[:, :k], positions[:, :k]
    return best, columns


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """Switch off rounding of the products: autocast, and TF32 or bfloat16 matrix products.

    A training run may have set either, and a reference must not depend on it.
    """
    precision: Any = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(), torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
