"""The calls of the faiss library: making, reading and describing an index, search options, GPUs, threads.

Shapes: q queries, D embedding width, k neighbours, p lists probed by a query.
"""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from retroflow.errors import UsageError
from retroflow.protocols import Float32Array, Int64Array
from retroflow.retrieval.faiss_options import FaissBuild, FaissSearch
from retroflow.retrieval.inverted_lists import ID_BYTES, MappedFile

_native: Any = faiss  # the type stubs lack the search parameters' arguments
_UNCHANGED = nullcontext()


def empty_index(factory: str, dimension: int, build: FaissBuild) -> Any:
    metric = faiss.METRIC_L2 if build.metric == "l2" else faiss.METRIC_INNER_PRODUCT
    try:
        return faiss.index_factory(dimension, factory, metric)
    except RuntimeError as error:
        reason = str(error).partition(".cpp:")[2].partition(": ")[2] or error
        raise UsageError(
            f'retriever.build.factory is "{factory}"; faiss makes no such index for vectors of width {dimension}: '
            f'{reason}. Use "auto", or see https://github.com/facebookresearch/faiss/wiki/The-index-factory.'
        ) from error


def is_plain_lists(index: Any) -> bool:
    """Return whether an index is only inverted lists of contiguous codes."""
    kinds = (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ)
    return type(faiss.downcast_index(index)) in kinds


def bytes_per_vector(index: Any) -> int:
    """Return the bytes of a vector in an index: codes, ids and links."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return bytes_per_vector(index.base_index) + bytes_per_vector(index.refine_index)
    if isinstance(index, faiss.IndexPreTransform | faiss.IndexIDMap):
        return bytes_per_vector(index.index) + ID_BYTES
    if isinstance(index, faiss.IndexIVF):
        return int(index.code_size) + ID_BYTES
    if isinstance(index, faiss.IndexHNSW):
        graph: Any = index.hnsw
        links = int(graph.nb_neighbors(0))  # those above level 0 are about a tenth more
        return bytes_per_vector(index.storage) + 4 * links * 11 // 10 + ID_BYTES
    return int(index.sa_code_size())


def comparisons(index: Any, count: int, search: FaissSearch) -> tuple[float, float]:
    """Return the vectors that a query, and a vector to be added, is compared with in an index of N vectors."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        compared, to_add = comparisons(index.base_index, count, search)
        return compared + search.refine_candidates, to_add
    if isinstance(index, faiss.IndexPreTransform | faiss.IndexIDMap):
        return comparisons(index.index, count, search)
    if isinstance(index, faiss.IndexIVF):
        nprobe = min(search.nprobe, index.nlist)
        graph_effort = {"search": max(search.ef_search, nprobe), "add": 16}  # 16: faiss's own for a quantizer
        centroids = {
            doing: comparisons(index.quantizer, index.nlist, replace(search, ef_search=effort))[0]
            for doing, effort in graph_effort.items()
        }
        return centroids["search"] + nprobe * count / index.nlist, centroids["add"]
    if isinstance(index, faiss.IndexHNSW):
        graph: Any = index.hnsw
        links, levels = int(graph.nb_neighbors(0)) // 2, math.log2(max(2, count))
        return links * (search.ef_search + levels), links * (int(graph.efConstruction) + levels)
    return count, 0


def read_index(path: Path, *, map_lists: bool) -> tuple[Any, MappedFile | None]:
    """Read an index; plain inverted lists are mapped."""
    with path.open("rb") as file:
        is_lists = file.read(4) in (b"IwFl", b"IwSq", b"IwPQ")
    if not (map_lists and is_lists):
        return faiss.read_index(str(path)), None
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    plain: Any = faiss.downcast_index(index)
    lists: Any = _native.downcast_InvertedLists(plain.invlists)
    if not isinstance(lists, _native.OnDiskInvertedLists):
        return index, None
    lists.prefetch_nthread = 0  # or every search starts up to 32 threads
    return index, MappedFile(path, int(lists.ptr), lists.totsize)


def search_preassigned(
    index: Any, queries: Float32Array, k: int, lists: Int64Array, coarse: Float32Array, parameters: Any
) -> tuple[Float32Array, Int64Array]:
    """Search queries [q, D] in given lists [q, p] (-1: none), at these distances from the lists' centroids."""
    queries, lists, coarse = np.ascontiguousarray(queries), np.ascontiguousarray(lists), np.ascontiguousarray(coarse)
    distances, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    pointers = [_native.swig_ptr(array) for array in (lists, coarse, distances, ids)]
    index.search_preassigned_c(len(queries), _native.swig_ptr(queries), k, *pointers, False, parameters)
    return distances, ids


def search_parameters(index: Any, search: FaissSearch, k: int, selector: Any = None) -> Any:
    """Return search options as faiss's per-call parameters; options set on the index would affect all threads."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return _native.SearchParametersPreTransform(index_params=search_parameters(index.index, search, k, selector))
    if isinstance(index, faiss.IndexRefine):
        factor = max(1.0, search.refine_candidates / k)
        inner = search_parameters(index.base_index, search, max(k, search.refine_candidates), selector)
        return _native.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        nprobe = min(search.nprobe, index.nlist)
        coarse = search_parameters(index.quantizer, search, nprobe)
        return _native.SearchParametersIVF(nprobe=nprobe, quantizer_params=coarse, sel=selector)
    if isinstance(index, faiss.IndexHNSW):
        return _native.SearchParametersHNSW(efSearch=max(search.ef_search, k), sel=selector)
    return None if selector is None else _native.SearchParameters(sel=selector)


def wants_gpu(device: str, key: str) -> bool:
    """Return whether to use a GPU; the library is asked, since faiss-cpu and faiss-gpu have the same module name."""
    found = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    if device == "cuda" and not found:
        raise UsageError(
            f'{key} is "cuda", but this faiss has no GPU: install "retroflow[faiss-gpu]" in place of faiss-cpu on a '
            'machine with a CUDA device, or use "auto".'
        )
    return bool(found) and device != "cpu"


def on_gpu(index: Any, *, required: bool) -> Any:
    """Copy an index to the first GPU; kinds without a GPU version stay on the CPU unless "cuda" is given."""
    try:
        resources = faiss.StandardGpuResources()
        copied = _native.index_cpu_to_gpu(resources, 0, index)
        copied.retroflow_resources = resources  # must outlive the index
    except RuntimeError as error:
        if required:
            raise UsageError(
                f'retriever.search.device is "cuda", but this index cannot be copied there: {error}'
            ) from error
        return index
    return copied


def threads(wanted: int) -> AbstractContextManager[None]:
    """Run with this number of OpenMP threads: 0 = unchanged, but 1 on macOS."""
    wanted = wanted or (1 if sys.platform == "darwin" else 0)
    return _set_threads(wanted) if wanted else _UNCHANGED


@contextmanager
def _set_threads(wanted: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(min(wanted, os.cpu_count() or wanted))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@contextmanager
def allocation_limit(file_bytes: int) -> Iterator[None]:
    """Limit allocations while reading to the size of the file, so that a damaged length does not need terabytes."""
    before = faiss.get_deserialization_vector_byte_limit()
    faiss.set_deserialization_vector_byte_limit(max(file_bytes, 2**20))
    try:
        yield
    finally:
        faiss.set_deserialization_vector_byte_limit(before)
