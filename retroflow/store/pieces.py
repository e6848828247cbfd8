"""Arrays whose length is not known beforehand: made in independent pieces, then joined.

A piece is one file with the rows that a block of documents gave to every array, and a marker with its SHA-256.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.store.array_file import Array, ArraySpec, ArrayWriter
from retroflow.store.artifact import BLOCKS_FOLDER
from retroflow.store.atomic import canonical_json, write_file
from retroflow.store.hashing import with_digests
from retroflow.store.manifest import FileEntry

JOINED_BLOCK_BYTES = 4 << 20


class Pieces:
    """The pieces of an artifact in the making, numbered in their final order."""

    def __init__(self, partial: Path) -> None:
        self._folder = partial / BLOCKS_FOLDER / "pieces"
        self._folder.mkdir(parents=True, exist_ok=True)

    def has(self, piece: int) -> bool:
        """True if a piece is there, whole."""
        try:
            marker = self._marker(piece)
            content = self._path(piece).read_bytes()
        except (OSError, ValueError):
            return False
        return bool(hashlib.sha256(content).hexdigest() == marker.get("sha256"))

    def write(self, piece: int, arrays: Mapping[str, Array]) -> None:
        """Write a piece: its rows of every array, by name; then its marker."""
        layout, parts, offset = {}, [], 0
        for name, array in arrays.items():
            part = np.ascontiguousarray(array).tobytes()
            layout[name] = {"offset": offset, "dtype": array.dtype.str, "shape": list(array.shape)}
            parts.append(part)
            offset += len(part)
        content = b"".join(parts)
        write_file(self._path(piece), content)
        marker = {"arrays": layout, "sha256": hashlib.sha256(content).hexdigest()}
        write_file(self._path(piece).with_suffix(".json"), canonical_json(marker))

    def shapes(self, piece: int) -> dict[str, tuple[int, ...]]:
        """Shape of every array in a piece."""
        return {name: tuple(array["shape"]) for name, array in self._marker(piece)["arrays"].items()}

    def read(self, piece: int) -> dict[str, Array]:
        """Every array of a piece."""
        content = self._path(piece).read_bytes()
        arrays = {}
        for name, array in self._marker(piece)["arrays"].items():
            count = int(np.prod(array["shape"], dtype=np.int64))
            flat = np.frombuffer(content, dtype=array["dtype"], count=count, offset=array["offset"])
            arrays[name] = flat.reshape(array["shape"])
        return arrays

    def _path(self, piece: int) -> Path:
        return self._folder / f"{piece:08d}.bin"

    def _marker(self, piece: int) -> dict[str, Any]:
        marker: dict[str, Any] = json.loads(self._path(piece).with_suffix(".json").read_bytes())
        return marker


def join_pieces(
    partial: Path,
    pieces: Pieces,
    num_pieces: int,
    specs: Mapping[str, ArraySpec],
    shift: Callable[[str, Array], Array],
) -> dict[str, FileEntry]:
    """Write the pieces' arrays one after the other into array files; returns their manifest entries.

    Args:
        partial: the artifact in the making.
        pieces: where the rows are.
        num_pieces: pieces 0 to num_pieces - 1 are joined.
        specs: array name to the file it becomes, at its full length.
        shift: gives what to write for (array name, rows of a piece), called in the order of the pieces.
    """
    writers: dict[str, ArrayWriter] = {}
    try:
        for name, spec in specs.items():
            writers[name] = ArrayWriter(partial, spec)
        rows = dict.fromkeys(specs, 0)
        for piece in range(num_pieces):
            for name, array in pieces.read(piece).items():
                writers[name].write(rows[name], shift(name, array))
                rows[name] += len(array)
        for writer in writers.values():
            writer.sync()
        return {writer.spec.name: _entry(writer) for writer in writers.values()}
    finally:
        for writer in writers.values():
            writer.close()


def _entry(writer: ArrayWriter) -> FileEntry:
    row_bytes = writer.spec.row_bytes
    block_bytes = max(1, JOINED_BLOCK_BYTES // row_bytes) * row_bytes
    return with_digests(writer.path, writer.entry(block_bytes, ()))
