"""faiss: the default backend. Any index of its factory language, or one chosen by the number of vectors.

This file hides the peculiarities of faiss: id -1 with a distance of 3.4e38, a k that must be a Python int, search
options as state of the index, squared distances where lower is better.

Plain inverted lists ("auto" up to a million vectors) are never in memory as a whole: `build` records each vector's
list, `save` writes the lists, `load` maps the file, `search` reads it list by list for many queries at once. To add
vectors reads the lists into memory. Removed vectors stay in the index, whatever its kind, and are passed over: some
kinds of index cannot remove, and others number the rest anew.

Shapes: q queries, N vectors, D embedding width, k neighbours.
"""

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if sys.platform == "darwin":
    # Two OpenMP runtimes in one process: on macOS faiss before torch ends in OMP error 15 or a segmentation fault.
    import torch  # noqa: F401

import faiss
import numpy as np
from numpy.typing import NDArray

from retroflow.errors import DamagedDataError, RetrieverError, UsageError
from retroflow.protocols import (
    Capabilities,
    Float32Array,
    IndexOutline,
    Int64Array,
    KeySource,
    Neighbours,
    Queries,
    VectorSource,
)
from retroflow.retrieval.faiss_choices import EF_SWEEP, NPROBE_SWEEP, auto_factory, sample_size, training_sample
from retroflow.retrieval.faiss_library import (
    allocation_limit,
    bytes_per_vector,
    comparisons,
    empty_index,
    is_plain_lists,
    on_gpu,
    read_index,
    search_parameters,
    search_preassigned,
    threads,
    wants_gpu,
)
from retroflow.retrieval.faiss_options import FaissBuild, FaissSearch, searches_a_selection
from retroflow.retrieval.inverted_lists import ID_BYTES, Codes, MappedFile, groups_of_lists, lists_of, write_lists

FILE, DESCRIPTION_FILE, REMOVED_FILE = "index.faiss", "faiss.json", "removed.npy"
ADD_ROWS, QUERY_ROWS = 4_096, 1_024
GROUP_BYTES = 8 << 20  # of lists, searched for many queries at a time
MAPPED_BYTES = 16 << 20  # of lists, after which mapped pages are released
MOST_ON_GPU = 2_048  # neighbours of a query
AUTO_RULE_VERSION, SAMPLE_RULE_VERSION = 1, 2

_native: Any = faiss  # the type stubs lack the search parameters' arguments


class FaissRetriever:
    """Search by faiss. Two builds with the same options and machine are bit-identical (measured up to 2 threads)."""

    def __init__(self, *, build: FaissBuild | None = None, search: FaissSearch | None = None) -> None:
        self._build = build or FaissBuild()
        self._search = self._effort = search or FaissSearch()
        self._index: Any = None
        self._kind: Any = None  # the same index as what it is; it does not own it
        self._is_lists = False
        self._parameters: dict[int, Any] = {}  # by k
        self._gpu_index: Any = None
        self._unwritten: _Unwritten | None = None
        self._filling = threading.Lock()
        self._list_bytes: Int64Array | None = None
        self._mapped: MappedFile | None = None
        self._removed: Int64Array = np.empty(0, np.int64)
        self._selector: Any = None  # of the vectors that are not removed
        self._bytes_since_release = 0
        self.explanation = ""
        self.capabilities = Capabilities(
            metric=self._build.metric,
            exact=self._build.factory == "Flat",
            deterministic=True,
            # A child hangs if its parent has searched with more than one OpenMP thread (faiss issue 5206).
            fork_safe=False,
            add="NSG" not in self._build.factory,
            remove=searches_a_selection(self._build.factory),
            device="cuda" if wants_gpu(self._search.device, "retriever.search.device") else "cpu",
        )

    def check_vectors(self, count: int | None, dimension: int) -> None:
        """Refuse a factory string with which faiss cannot index N vectors of width D; N is None if unknown."""
        if self._build.factory == "auto":
            return
        lists = faiss.try_extract_index_ivf(empty_index(self._build.factory, dimension, self._build))
        if count is not None and lists is not None and lists.nlist > count:
            raise UsageError(
                f'retriever.build.factory is "{self._build.factory}", which has {lists.nlist} lists, more than the '
                f'{count} vectors. Use fewer lists, or "auto", which chooses by the number of vectors.'
            )

    def outline(self, count: int, dimension: int) -> IndexOutline:
        """As in `OutlinesIndex`; plain inverted lists are on disk but for a sample and 4 bytes a vector."""
        factory, reason = self._factory(count, dimension)
        index = empty_index(factory, dimension, self._build)
        found = faiss.try_extract_index_ivf(index)
        lists, is_lists = 0 if found is None else found.nlist, is_plain_lists(index)
        whole = count * bytes_per_vector(index) + 4 * lists * dimension
        kept = 4 * lists * dimension + 2 * MAPPED_BYTES if is_lists else whole
        sample = 0
        if not index.is_trained:
            sample = min(count, self._build.train_sample or sample_size(lists, dimension, on_disk=is_lists))
        settings = [{"nprobe": value} for value in NPROBE_SWEEP if value <= lists]
        if isinstance(faiss.downcast_index(index), faiss.IndexHNSW):
            settings = [{"ef_search": value} for value in EF_SWEEP]
        building = kept + 12 * sample * dimension + 4 * count  # a sample, its copy in faiss, and its residuals
        compared, to_add = comparisons(index, count, self._search)
        return IndexOutline(
            kind=f"{factory} ({reason})",
            building=building,
            searching=kept,
            disk=whole,
            settings=settings or [{}],
            compared=compared,
            compared_to_add=to_add,
        )

    def build(self, keys: KeySource) -> None:
        """Train on a sample of vectors [N, D], then add them block by block.

        With plain inverted lists a reference to the vectors is kept until `save` has written them; they must not
        change before.
        """
        vectors = keys.vectors
        self._start(vectors)
        with threads(self._search.num_threads):
            if self._is_lists:
                lists = self._lists_of(vectors)
                self._unwritten = _Unwritten(lists, lambda: self._codes(vectors, lists), vectors)
            else:
                _add(self._index, vectors)

    def divides(self, count: int, dimension: int) -> bool:
        """As in `BuildsInShards`: plain inverted lists; other kinds have no merge with the same bytes."""
        return is_plain_lists(empty_index(self._factory(count, dimension)[0], dimension, self._build))

    def train(self, keys: KeySource, folder: Path) -> None:
        """As in `BuildsInShards`: writes the index without vectors."""
        self._start(keys.vectors)
        self.save(folder)

    def open_trained(self, folder: Path) -> None:
        """As in `BuildsInShards`."""
        self._read(folder, map_lists=False)

    def fill(self, keys: KeySource) -> dict[str, NDArray[Any]]:
        """As in `BuildsInShards`: the list int32 [s] and the code uint8 [s, code bytes] of each vector."""
        with threads(self._search.num_threads):
            lists = self._lists_of(keys.vectors)
            return {"lists": lists, "codes": np.concatenate(list(self._codes(keys.vectors, lists)))}

    def merge(self, shards: Callable[[], Iterable[Mapping[str, NDArray[Any]]]]) -> None:
        """As in `BuildsInShards`; 4 bytes a vector are in memory."""
        lists = np.concatenate([shard["lists"] for shard in shards()])
        self._unwritten = _Unwritten(lists, lambda: (shard["codes"] for shard in shards()))

    def add(self, keys: KeySource) -> None:
        """Add vectors [M, D] without training anew; see `AddsKeys`."""
        index = self._filled()
        if self._mapped is not None:
            lists = _native.ArrayInvertedLists(index.nlist, index.code_size)
            index.invlists.copy_subset_to(lists, 0, 0, index.ntotal)
            index.replace_invlists(lists, True)
            lists.this.disown()
        with threads(self._search.num_threads):
            _add(index, keys.vectors)
        self._use(self._index, None, self._removed)

    def remove(self, ids: Int64Array) -> None:
        """Pass over vectors from now on; see `RemovesKeys`."""
        self._pass_over(np.append(self._removed, ids))

    def search(self, queries: Queries, k: int) -> Neighbours:
        """Search queries float32 [q, D]; several threads may search at once."""
        vectors = queries.vectors
        index = self._searchable(k)
        with threads(self._search.num_threads):
            if self._is_lists and index is self._kind and not self._reads_little(len(vectors)):
                starts = range(0, len(vectors), QUERY_ROWS)
                parts = [self._search_lists(vectors[at : at + QUERY_ROWS], k) for at in starts]
                distances, ids = (np.concatenate(part) for part in zip(*parts, strict=True))
            else:
                if k not in self._parameters:
                    self._parameters[k] = search_parameters(index, self._effort, k, self._selector)
                distances, ids = index.search(vectors, k, params=self._parameters[k])
        if self._build.metric == "l2":
            np.minimum(np.negative(distances, out=distances), 0.0, out=distances)
        if ids[:, -1].min() < 0:  # what is missing is at the end of a row
            distances[ids < 0] = -np.inf
        return Neighbours(ids, distances)

    def save(self, folder: Path) -> None:
        """Write index.faiss, and faiss.json with the factory string and why it was chosen."""
        if self._index is None:
            raise RetrieverError("faiss: build() or load() comes before save().")
        if self._unwritten is not None:
            _write_lists(folder / FILE, self._kind, self._unwritten)
        elif self._mapped is not None:
            shutil.copyfile(self._mapped.path, folder / FILE)
        else:
            try:
                faiss.write_index(self._index, str(folder / FILE))
            except RuntimeError as error:
                raise OSError(f'faiss could not write "{folder / FILE}": {error}') from error
        np.save(folder / REMOVED_FILE, self._removed)
        description = {"explanation": self.explanation, "faiss": faiss.__version__, "build": asdict(self._build)}
        (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read index.faiss, mapping inverted lists; a file that is not one raises DamagedDataError."""
        self._read(folder, map_lists=self.capabilities.device == "cpu")

    def _read(self, folder: Path, *, map_lists: bool) -> None:
        path = folder / FILE
        try:
            with allocation_limit(path.stat().st_size):
                index, mapped = read_index(path, map_lists=map_lists)
            removed = np.load(folder / REMOVED_FILE, allow_pickle=False)
            self.explanation = str(json.loads((folder / DESCRIPTION_FILE).read_text("utf-8"))["explanation"])
        except (RuntimeError, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
            raise DamagedDataError(f'faiss: the index in "{folder}" cannot be read: {error}') from error
        self._use(index, mapped, removed)

    def fingerprint(self) -> dict[str, object]:
        """Build options, the versions of the rules behind "auto" and a sample of 0, and faiss's (major.minor)."""
        rule = {"auto_rule": AUTO_RULE_VERSION} if self._build.factory == "auto" else {}
        if self._build.train_sample == 0:
            rule["sample_rule"] = SAMPLE_RULE_VERSION
        version = ".".join(faiss.__version__.split(".")[:2])
        return {"backend": "faiss", "version": version, "build": asdict(self._build), **rule}

    def _factory(self, count: int, dimension: int) -> tuple[str, str]:
        """Return the factory string for N vectors of width D, and why."""
        given = self._build.factory, "given by the recipe"
        return auto_factory(count, dimension) if given[0] == "auto" else given

    def _start(self, vectors: VectorSource) -> None:
        """Make an index without vectors, trained on a sample of these."""
        factory, reason = self._factory(*vectors.shape)
        index = empty_index(factory, vectors.shape[1], self._build)
        with threads(self._search.num_threads):
            if not index.is_trained:
                self._train(index, factory, vectors)
        self._use(index, None, np.empty(0, np.int64))
        self.explanation = f"{factory}: {reason}"

    def _lists_of(self, vectors: VectorSource) -> NDArray[np.int32]:
        return lists_of(lambda block: self._kind.quantizer.search(block, 1)[1], vectors)

    def _codes(self, vectors: VectorSource, list_of: NDArray[np.int32]) -> Iterator[NDArray[np.uint8]]:
        """Encode vectors [N, D], whose lists are known."""
        for start in range(0, len(vectors), ADD_ROWS):
            block = np.ascontiguousarray(vectors[start : start + ADD_ROWS], dtype=np.float32)
            lists = list_of[start : start + ADD_ROWS].astype(np.int64)
            codes = np.empty((len(block), self._kind.code_size), np.uint8)
            self._kind.encode_vectors(len(block), *map(_native.swig_ptr, (block, lists, codes)))
            yield codes

    def _train(self, index: Any, factory: str, vectors: VectorSource) -> None:
        found = faiss.try_extract_index_ivf(index)
        inverted: Any = None if found is None else faiss.downcast_index(found)
        lists = 0 if found is None else found.nlist
        if inverted is not None:
            inverted.cp.seed = self._build.seed
            inverted.cp.min_points_per_centroid = 1  # no warning about fewer than 39 vectors per list
            inverted.cp.max_points_per_centroid = 2**30  # the sample is already ours
            is_scalar = isinstance(inverted, faiss.IndexIVFScalarQuantizer)
            if is_scalar and inverted.sq.qtype == _native.ScalarQuantizer.QT_fp16:
                inverted.by_residual = False  # float16 vectors, as in an embedding store, are then kept exactly
            if wants_gpu(self._build.device, "retriever.build.device"):
                inverted.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(inverted.d))
        wanted = self._build.train_sample or sample_size(lists, vectors.shape[1], on_disk=is_plain_lists(index))
        try:
            index.train(training_sample(vectors, wanted))
        except RuntimeError as error:
            raise UsageError(
                f'retriever.build.factory "{factory}" cannot be trained on {len(vectors)} vectors: {error}. '
                'Use fewer lists, or "auto", which chooses by the number of vectors.'
            ) from error

    def _use(self, index: Any, mapped: MappedFile | None, removed: Int64Array) -> None:
        """Replace the index, with the map of its lists and the ids that are passed over."""
        self._index, self._mapped, self._is_lists = index, mapped, is_plain_lists(index)
        self._kind = faiss.downcast_index(index)
        self._gpu_index = self._unwritten = self._list_bytes = None
        self._bytes_since_release = 0
        self._pass_over(removed)

    def _pass_over(self, removed: Int64Array) -> None:
        self._removed, self._selector, self._effort = removed, None, self._search
        self._parameters = {}
        if len(removed):
            count = self._index.ntotal if self._unwritten is None else len(self._unwritten.list_of)
            self._effort = self._search.times(count / max(1, count - len(removed)))
            self._selector = _native.IDSelectorNot(_native.IDSelectorBatch(removed))

    def _filled(self) -> Any:
        """Return the index with all vectors in it; lists that were not saved yet are in memory from then on."""
        if self._index is None:
            raise RetrieverError("faiss: build() or load() comes before search().")
        with self._filling:
            if self._unwritten is not None:
                if self._unwritten.vectors is None:
                    raise RetrieverError("faiss: after merge() come save() and load(), before search().")
                _add(self._index, self._unwritten.vectors)
                self._unwritten = None
        return self._kind

    def _searchable(self, k: int) -> Any:
        self._filled()
        with self._filling:
            # A GPU has no selectors, and no k above 2,048 (faiss, GpuIndex.h, getMaxKSelection).
            if self.capabilities.device != "cuda" or self._selector is not None or k > MOST_ON_GPU:
                return self._kind
            if self._gpu_index is None:
                self._gpu_index = on_gpu(self._index, required=self._search.device == "cuda")
            return self._gpu_index

    def _reads_little(self, num_queries: int) -> bool:
        """Return whether the lists of these queries are few bytes, so that faiss may read them query by query."""
        nprobe, lists = self._effort.nprobe, self._kind.nlist
        bytes_per_list = self._kind.ntotal * (self._kind.code_size + ID_BYTES) / lists
        return num_queries == 1 or num_queries * min(nprobe, lists) * bytes_per_list <= GROUP_BYTES

    def _search_lists(self, queries: Float32Array, k: int) -> tuple[Float32Array, Int64Array]:
        """Return distances and ids [q, k]; reads the lists in order, a range of them for all queries."""
        index: Any = self._kind
        if self._list_bytes is None:
            sizes = np.array([index.invlists.list_size(number) for number in range(index.nlist)], np.int64)
            self._list_bytes = sizes * (index.code_size + ID_BYTES)
        nprobe = min(self._effort.nprobe, index.nlist)
        coarse, probed = index.quantizer.search(
            queries, nprobe, params=search_parameters(index.quantizer, self._effort, nprobe)
        )  # [q, p] each
        best = _native.ResultHeap(len(queries), k, keep_max=self._build.metric != "l2")
        for first, stop, num_bytes in groups_of_lists(probed, self._list_bytes, GROUP_BYTES):
            here = (probed >= first) & (probed < stop)
            rows = np.flatnonzero(here.any(axis=1))
            lists = np.where(here[rows], probed[rows], -1)
            parameters = _native.SearchParametersIVF(nprobe=nprobe, sel=self._selector)
            best.add_result_subset(rows, *search_preassigned(index, queries[rows], k, lists, coarse[rows], parameters))
            self._after_reading(num_bytes)
        best.finalize()
        return best.D, best.I

    def _after_reading(self, num_bytes: int) -> None:
        """Release mapped pages from time to time, since every page that was read counts as memory of the process."""
        self._bytes_since_release += num_bytes
        if self._mapped is not None and self._bytes_since_release >= MAPPED_BYTES:
            self._mapped.release()
            self._bytes_since_release = 0


def _add(index: Any, vectors: VectorSource) -> None:
    for start in range(0, len(vectors), ADD_ROWS):
        index.add(np.ascontiguousarray(vectors[start : start + ADD_ROWS], dtype=np.float32))


@dataclass(frozen=True)
class _Unwritten:
    """Vectors that an index of plain lists does not hold yet.

    Attributes:
        list_of: int32 [N], the list of each.
        codes: gives their codes, in blocks uint8 [s, code bytes].
        vectors: themselves; None if others have encoded them.
    """

    list_of: NDArray[np.int32]
    codes: Callable[[], Codes]
    vectors: VectorSource | None = None


def _write_lists(path: Path, index: Any, unwritten: _Unwritten) -> None:
    """Write the file that faiss would write after adding vectors, without all of them in memory."""
    index.ntotal = len(unwritten.list_of)
    try:
        header = bytes(faiss.serialize_index(index).data)
    finally:
        index.ntotal = 0
    write_lists(path, header, index.nlist, unwritten.list_of, unwritten.codes())
