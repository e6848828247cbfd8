"""faiss: the default backend. Any index of its factory language, or one chosen by the number of vectors.

Everything particular to faiss ends here: its id -1 with a distance of 3.4e38, k that must be a Python int, search
options that would otherwise be state of the index, squared L2 distances where lower is better.

Shapes: q queries, N vectors, D embedding width, k neighbours.
"""

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

if sys.platform == "darwin":
    # Two OpenMP runtimes in one process: on macOS faiss before torch ends in OMP error 15 or a segmentation fault.
    import torch  # noqa: F401

import faiss
import numpy as np

from retroflow.errors import DamagedDataError, RecipeError, RetrieverError
from retroflow.protocols import Capabilities, Float32Array, Neighbours, VectorSource

FILE = "index.faiss"
DESCRIPTION_FILE = "faiss.json"
ADD_ROWS = 16_384
LARGEST_SAMPLE_BYTES = 2**30
AUTO_RULE_VERSION = 1

_native: Any = faiss  # the type stubs lack the search parameters' arguments


@dataclass(frozen=True, kw_only=True)
class FaissBuild:
    """Options that change the index.

    Attributes:
        factory: a faiss factory string such as "IVF1024,SQfp16" or "HNSW32", or "auto": chosen by N
            (`auto_factory`).
        metric: "l2" (minus the squared distance) or "inner_product".
        train_sample: vectors that k-means and quantisers are trained on, spread over the source; 0 = 40 per list,
            at least 65,536, at most 1 GiB of float32.
        seed: of k-means.
        device: where k-means runs; "auto" uses a GPU where faiss-gpu is installed and finds one.
    """

    factory: str = "auto"
    metric: Literal["l2", "inner_product"] = "l2"
    train_sample: int = 0
    seed: int = 1234
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, kw_only=True)
class FaissSearch:
    """Options that change recall and speed of a search, never the index. Those an index does not have are ignored.

    Attributes:
        nprobe: inverted lists visited (IVF).
        ef_search: candidates kept while walking the graph (HNSW); at least k is used.
        refine_candidates: candidates whose distance is computed again from full vectors (RFlat, Refine).
        num_threads: OpenMP threads; 0 = faiss's own choice, 1 on macOS.
        device: where the search runs; "auto" uses a GPU where faiss-gpu finds one and the index can live on it.
    """

    nprobe: int = 64
    ef_search: int = 64
    refine_candidates: int = 64
    num_threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"


class FaissRetriever:
    """Search by faiss. Two builds with the same options and machine are bit-identical (measured up to 2 threads)."""

    def __init__(self, *, build: FaissBuild | None = None, search: FaissSearch | None = None) -> None:
        self._build = build or FaissBuild()
        self._search = search or FaissSearch()
        self._index: Any = None
        self._gpu_index: Any = None
        self.explanation = ""
        self.capabilities = Capabilities(
            metric=self._build.metric,
            exact=self._build.factory == "Flat",
            deterministic=True,
            # A child hangs when its parent has searched with more than one OpenMP thread (faiss issue 5206).
            fork_safe=False,
            device="cuda" if _wants_gpu(self._search.device, "retriever.search.device") else "cpu",
        )

    def build(self, vectors: VectorSource) -> None:
        """Train on a sample of vectors [N, D], then add them block by block."""
        count, dimension = vectors.shape
        factory, self.explanation = self._build.factory, "given by the recipe"
        if factory == "auto":
            factory, self.explanation = auto_factory(count, dimension)
        index = _empty_index(factory, dimension, self._build)
        with _threads(self._search.num_threads):
            if not index.is_trained:
                self._train(index, factory, vectors)
            for start in range(0, count, ADD_ROWS):
                index.add(_float32(vectors[start : start + ADD_ROWS]))
        self._index, self._gpu_index = index, None
        self.explanation = f"{factory}: {self.explanation}"

    def search(self, queries: Float32Array, k: int) -> Neighbours:
        """Search queries float32 [q, D]; several threads may search at once."""
        index = self._searchable()
        with _threads(self._search.num_threads):
            distances, ids = index.search(queries, int(k), params=_parameters(index, self._search, int(k)))
        scores = np.minimum(-distances, 0.0) if self._build.metric == "l2" else distances
        scores[ids < 0] = -np.inf
        return Neighbours(ids, scores)

    def save(self, folder: Path) -> None:
        """Write index.faiss, and faiss.json with the factory string and why it was chosen."""
        if self._index is None:
            raise RetrieverError("faiss: build() or load() comes before save().")
        try:
            faiss.write_index(self._index, str(folder / FILE))
        except RuntimeError as error:
            raise OSError(f'faiss could not write "{folder / FILE}": {error}') from error
        description = {"explanation": self.explanation, "faiss": faiss.__version__, "build": asdict(self._build)}
        (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read index.faiss; a file that is not one raises DamagedDataError."""
        path = folder / FILE
        try:
            with _allocation_limit(path.stat().st_size):
                index = faiss.read_index(str(path))
            self.explanation = str(json.loads((folder / DESCRIPTION_FILE).read_text("utf-8"))["explanation"])
        except (RuntimeError, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
            raise DamagedDataError(f'faiss: the index in "{folder}" cannot be read: {error}') from error
        self._index, self._gpu_index = index, None

    def fingerprint(self) -> dict[str, object]:
        """Build options, the version of the rule behind "auto" and of faiss's file format (major.minor)."""
        rule = {"auto_rule": AUTO_RULE_VERSION} if self._build.factory == "auto" else {}
        version = ".".join(faiss.__version__.split(".")[:2])
        return {"backend": "faiss", "version": version, "build": asdict(self._build), **rule}

    def _train(self, index: Any, factory: str, vectors: VectorSource) -> None:
        found = faiss.try_extract_index_ivf(index)
        inverted: Any = None if found is None else faiss.downcast_index(found)
        lists = 0 if found is None else found.nlist
        if inverted is not None:
            inverted.cp.seed = self._build.seed
            inverted.cp.min_points_per_centroid = 1  # fewer than 39 a list is a matter of taste, not a warning
            inverted.cp.max_points_per_centroid = 2**30  # the sample is ours already
            if (
                isinstance(inverted, faiss.IndexIVFScalarQuantizer)
                and inverted.sq.qtype == _native.ScalarQuantizer.QT_fp16
            ):
                inverted.by_residual = False  # float16 vectors, as an embedding store has them, are then kept exactly
            if _wants_gpu(self._build.device, "retriever.build.device"):
                inverted.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(inverted.d))
        try:
            index.train(_training_sample(vectors, self._build.train_sample, lists))
        except RuntimeError as error:
            raise RecipeError(
                f'retriever.build.factory "{factory}" cannot be trained on {len(vectors)} vectors: {error}. '
                'Use fewer lists, or "auto", which chooses by the number of vectors.'
            ) from error

    def _searchable(self) -> Any:
        if self._index is None:
            raise RetrieverError("faiss: build() or load() comes before search().")
        if self.capabilities.device != "cuda":
            return self._index
        if self._gpu_index is None:
            self._gpu_index = _on_gpu(self._index, required=self._search.device == "cuda")
        return self._gpu_index


def auto_factory(count: int, dimension: int) -> tuple[str, str]:
    """Choose a factory string by the number N and width D of the vectors; returns it and the reason.

    Source: docs/retrievers.md, measured at N = 40,696; list counts after the faiss wiki (4 sqrt N) and autofaiss.
    """
    if count < 10_000:
        return "Flat", f"{count} vectors are few: exact search is fast enough"
    lists = 2 ** round(math.log2(4 * math.sqrt(count)))
    if count < 1_000_000:
        return f"IVF{lists},SQfp16", f"4 sqrt(N) lists for {count} vectors, 2 bytes a number"
    lists = 16_384 if count < 10_000_000 else 65_536 if count < 300_000_000 else 131_072
    coarse, reason = f"IVF{lists}_HNSW32", f"{count} vectors: an HNSW graph finds the lists"
    if dimension % 2:  # product quantisers need equal parts
        return f"{coarse},SQfp16", reason
    return f"{coarse},PQ{dimension // 2}x4fs,Refine(SQfp16)", f"{reason}, 4-bit codes scan them, float16 ranks the best"


def _empty_index(factory: str, dimension: int, build: FaissBuild) -> Any:
    metric = faiss.METRIC_L2 if build.metric == "l2" else faiss.METRIC_INNER_PRODUCT
    try:
        return faiss.index_factory(dimension, factory, metric)
    except RuntimeError as error:
        raise RecipeError(
            f'retriever.build.factory: faiss makes no index out of "{factory}" for vectors of width {dimension}: '
            f'{error}. Use "auto", or see https://github.com/facebookresearch/faiss/wiki/The-index-factory.'
        ) from error


def _training_sample(vectors: VectorSource, wanted: int, lists: int) -> Float32Array:
    """Read up to `wanted` rows spread evenly over vectors [N, D], block by block."""
    count, dimension = vectors.shape
    size = wanted or min(max(40 * lists, 65_536), LARGEST_SAMPLE_BYTES // (4 * dimension))
    rows = np.linspace(0, count, min(size, count), endpoint=False).astype(np.int64)
    sample = np.empty((len(rows), dimension), np.float32)
    for start in range(0, count, ADD_ROWS):
        first, last = np.searchsorted(rows, [start, start + ADD_ROWS])
        if first < last:
            sample[first:last] = vectors[start : start + ADD_ROWS][rows[first:last] - start]
    return sample


def _parameters(index: Any, search: FaissSearch, k: int) -> Any:
    """Search options as faiss's per-call parameters: options set on the index are state shared by all threads."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return _native.SearchParametersPreTransform(index_params=_parameters(index.index, search, k))
    if isinstance(index, faiss.IndexRefine):
        factor = max(1.0, search.refine_candidates / k)
        inner = _parameters(index.base_index, search, max(k, search.refine_candidates))
        return _native.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        nprobe = min(search.nprobe, index.nlist)
        coarse = _parameters(index.quantizer, search, nprobe)
        return _native.SearchParametersIVF(nprobe=nprobe, quantizer_params=coarse)
    if isinstance(index, faiss.IndexHNSW):
        return _native.SearchParametersHNSW(efSearch=max(search.ef_search, k))
    return None


def _float32(block: Any) -> Float32Array:
    return np.ascontiguousarray(block, dtype=np.float32)


def _wants_gpu(device: str, key: str) -> bool:
    """Say whether to use a GPU: asked of the library, for faiss-cpu and faiss-gpu have the same module name."""
    found = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    if device == "cuda" and not found:
        raise RecipeError(
            f'{key} is "cuda", but this faiss has no GPU: install "retroflow[faiss-gpu]" in place of faiss-cpu on a '
            'machine with a CUDA device, or use "auto".'
        )
    return bool(found) and device != "cpu"


def _on_gpu(index: Any, *, required: bool) -> Any:
    """Copy an index to the first GPU; kinds that have no GPU version stay on the CPU unless "cuda" was asked for."""
    try:
        resources = faiss.StandardGpuResources()
        copied = _native.index_cpu_to_gpu(resources, 0, index)
        copied.retroflow_resources = resources  # must outlive the index
    except RuntimeError as error:
        if required:
            raise RecipeError(
                f'retriever.search.device is "cuda", but this index cannot be copied there: {error}'
            ) from error
        return index
    return copied


@contextmanager
def _threads(wanted: int) -> Iterator[None]:
    """Run with so many OpenMP threads: 0 = as they are, but 1 on macOS."""
    wanted = wanted or (1 if sys.platform == "darwin" else 0)
    if not wanted:
        yield
        return
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(min(wanted, os.cpu_count() or wanted))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@contextmanager
def _allocation_limit(file_bytes: int) -> Iterator[None]:
    """Let reading allocate no vector larger than the file: a damaged length must not ask for terabytes."""
    before = faiss.get_deserialization_vector_byte_limit()
    faiss.set_deserialization_vector_byte_limit(max(file_bytes, 2**20))
    try:
        yield
    finally:
        faiss.set_deserialization_vector_byte_limit(before)
