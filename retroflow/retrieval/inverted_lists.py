"""Inverted lists that are never in memory as a whole: written from a source, searched list by list.

The file has the layout of faiss's index files; faiss writes everything before the lists.

Shapes: N vectors, D embedding width, q queries, p lists probed by a query, k neighbours.
"""

import ctypes
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.errors import RetrieverError
from retroflow.protocols import Float32Array, Int64Array, VectorSource
from retroflow.store.array_file import allocate, write_at

ID_BYTES = 8
READ_ROWS = 4_096
WRITE_BYTES, PAGE_BYTES = 2 << 20, 4 << 10  # of codes, read and written at a time: in all, and for every list

Codes = Iterable[NDArray[np.uint8]]


def lists_of(nearest: Callable[[Float32Array], Int64Array], vectors: VectorSource) -> NDArray[np.int32]:
    """Return the list of each of vectors [N, D], int32 [N].

    Args:
        nearest: finds the list [s, 1] nearest to each of float32 [s, D].
        vectors: read in blocks.
    """
    lists = np.empty(len(vectors), np.int32)
    for start in range(0, len(vectors), READ_ROWS):
        block = np.ascontiguousarray(vectors[start : start + READ_ROWS], dtype=np.float32)
        lists[start : start + READ_ROWS] = np.maximum(nearest(block)[:, 0], 0)  # a graph may answer -1
    return lists


def filled_header(empty: bytes, sizes: Int64Array, code_bytes: int) -> bytes:
    """Turn the header of an index with empty lists into that of lists with sizes [lists].

    Raises:
        RetrieverError: this version of faiss has another format.
    """
    start = b"ilar" + np.array([len(sizes), code_bytes], "<u8").tobytes()
    ending = start + b"sprs" + bytes(8)
    if not empty.endswith(ending):
        raise RetrieverError(
            "This version of faiss writes inverted lists in a format that retroflow does not know yet."
        )
    return empty.removesuffix(ending) + start + b"full" + np.array([len(sizes), *sizes], "<u8").tobytes()


def write_lists(path: Path, empty: bytes, num_lists: int, list_of: NDArray[np.int32], codes: Codes) -> None:
    """Write an index file whose lists hold N vectors, reading their codes once and in order.

    Memory: a page for every list, or 2 MiB if that is more; so a list is written in runs of about a page.

    Args:
        path: the file to write.
        empty: the file that faiss writes for empty lists.
        num_lists: number of lists.
        list_of: int32 [N], the list of each vector; the entries of a list are in the order of their ids.
        codes: uint8 [s, code bytes], in the order of the vectors; at least one.

    Raises:
        RetrieverError: as `filled_header`.
        OSError: there is no space for the whole file; raised before any list is written.
    """
    sizes = np.bincount(list_of, minlength=num_lists)
    filled, first = np.zeros(num_lists, np.int64), 0
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for block in _gathered(codes, max(WRITE_BYTES, PAGE_BYTES * num_lists)):
            code_bytes = block.shape[1]
            if not first:
                header = filled_header(empty, sizes, code_bytes)
                starts = len(header) + (code_bytes + ID_BYTES) * (np.cumsum(sizes) - sizes)  # [lists], bytes
                allocate(descriptor, len(header) + (code_bytes + ID_BYTES) * len(list_of))
                write_at(descriptor, header, 0)
            lists = list_of[first : first + len(block)]
            order = np.argsort(lists, kind="stable")
            block, ids = block[order], (order + first).astype("<i8")
            present, at, counts = np.unique(lists[order], return_index=True, return_counts=True)
            for number, row, count in zip(present.tolist(), at.tolist(), counts.tolist(), strict=True):
                before, start = int(filled[number]), int(starts[number])
                write_at(descriptor, block[row : row + count].data.cast("B"), start + before * code_bytes)
                ids_start = start + int(sizes[number]) * code_bytes
                write_at(descriptor, ids[row : row + count].data.cast("B"), ids_start + before * ID_BYTES)
            filled[present] += counts
            first += len(order)
    finally:
        os.close(descriptor)


def _gathered(codes: Codes, budget: int) -> Iterator[NDArray[np.uint8]]:
    """Join blocks of codes until they have about `budget` bytes."""
    blocks, num_bytes = list[NDArray[np.uint8]](), 0
    for block in codes:
        blocks.append(block)
        num_bytes += block.nbytes
        if num_bytes >= budget:
            yield np.concatenate(blocks)
            blocks, num_bytes = [], 0
    if blocks:
        yield np.concatenate(blocks)


def groups_of_lists(probed: Int64Array, list_bytes: Int64Array, budget: int) -> Iterator[tuple[int, int, int]]:
    """Divide the lists probed by queries [q, p] (-1: none) into ranges of at most `budget` bytes, at least one list.

    Yields:
        First list, list after the last, and the bytes of those that are probed.
    """
    wanted = np.unique(probed[probed >= 0])
    ends = np.cumsum(list_bytes[wanted])
    start = 0
    while start < len(wanted):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + budget, side="right")))
        yield int(wanted[start]), int(wanted[stop - 1]) + 1, int(ends[stop - 1]) - done
        start = stop


@dataclass(frozen=True)
class MappedFile:
    """A file that is mapped read-only, and the address and size of the map."""

    path: Path
    address: int
    num_bytes: int

    def release(self) -> None:
        """Release its pages; if the system cannot, they stay until it needs them."""
        if hasattr(mmap, "MADV_DONTNEED"):
            library: Any = ctypes.CDLL(None)
            library.madvise(ctypes.c_void_p(self.address), ctypes.c_size_t(self.num_bytes), mmap.MADV_DONTNEED)
