"""Array files: plain .npy files that are written and read in ranges of rows, never through a writable map.

On a full disk, writing through a memory map kills the process with SIGBUS; `pwrite` after `posix_fallocate` raises.
"""

import io
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.store.manifest import FileEntry, damaged

Array = NDArray[Any]


@dataclass(frozen=True)
class ArraySpec:
    """Name, dtype and shape of an array file.

    Attributes:
        name: path inside the artifact, "train/tokens.npy".
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def header(self) -> bytes:
        """The .npy header."""
        stream = io.BytesIO()
        values = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(stream, values)
        return stream.getvalue()


class ArrayWriter:
    """One array file open for writing at its full size."""

    def __init__(self, folder: Path, spec: ArraySpec) -> None:
        self.spec = spec
        self.path = folder / spec.name
        self.header_bytes = len(spec.header)
        self.num_bytes = self.header_bytes + spec.shape[0] * spec.row_bytes
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if os.fstat(self.descriptor).st_size > self.num_bytes:
                os.ftruncate(self.descriptor, self.num_bytes)
            allocate(self.descriptor, self.num_bytes)
            write_at(self.descriptor, spec.header, 0)
        except BaseException:
            os.close(self.descriptor)
            raise

    def write(self, first_row: int, rows: Array) -> None:
        """Write rows from first_row on.

        Raises:
            ValueError: the rows do not fit into the array, or a value not into its dtype.
        """
        data = np.ascontiguousarray(rows, dtype=self.spec.dtype)
        if not np.can_cast(rows.dtype, self.spec.dtype) and data.dtype.kind in "iu" and (data != rows).any():
            raise ValueError(f"{self.spec.name}: a value does not fit into {self.spec.dtype}")
        if data.shape[1:] != self.spec.shape[1:] or first_row + len(data) > self.spec.shape[0]:
            raise ValueError(f"rows {first_row} + {data.shape} do not fit into {self.spec}")
        write_at(
            self.descriptor, data.reshape(-1).view(np.uint8).data, self.header_bytes + first_row * self.spec.row_bytes
        )

    def entry(self, block_bytes: int, digests: tuple[str, ...]) -> FileEntry:
        """The file's manifest entry."""
        return FileEntry(self.num_bytes, self.header_bytes, block_bytes, digests, self.spec.dtype.str, self.spec.shape)

    def sync(self) -> None:
        """Wait until the written data is on the disk."""
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


def allocate(descriptor: int, num_bytes: int) -> None:
    """Reserve a file's bytes, so that a full disk is an OSError now instead of half a file later."""
    if num_bytes and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
    else:
        os.ftruncate(descriptor, num_bytes)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of data at an offset, repeatedly after short writes."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def map_array(artifact: Path, name: str, entry: FileEntry) -> Array:
    """Map an array file of a checked artifact, read-only.

    Args:
        artifact: the artifact's folder.
        name: the file's path in it.
        entry: its manifest entry, with dtype and shape.
    """
    if entry.dtype is None:
        raise damaged(artifact / name, "its manifest entry has no dtype", artifact)
    if 0 in entry.shape:
        return np.empty(entry.shape, dtype=entry.dtype)
    return np.memmap(artifact / name, dtype=entry.dtype, mode="r", offset=entry.header_bytes, shape=entry.shape)


def release_pages(array: Array) -> None:
    """Release the pages of a mapped array, so that reading all of it does not fill the memory."""
    mapped = getattr(array, "_mmap", None)
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def check_mapped(arrays: Iterable[Array]) -> None:
    """Check that files mapped by `map_array` still have their size: reading past the end would kill the process.

    It takes a microsecond per array. A file that is truncated between this check and the reading is not noticed.

    Args:
        arrays: mapped as a whole; arrays in memory are skipped.

    Raises:
        DamagedDataError: a file has become shorter.
    """
    for array in arrays:
        mapped = getattr(array, "_mmap", None)
        if isinstance(array, np.memmap) and mapped is not None and mapped.size() < array.offset + array.nbytes:
            path = Path(str(array.filename))
            raise damaged(path, "it was truncated while it was in use", path.parent.parent)
