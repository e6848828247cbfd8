"""Pieces: blocks of an artifact in the making, a file each, that any number of processes write and one joins.

A piece holds the rows of one block for every array, after a header with their SHA-256 and a hash of what the block was
made from. It appears by a rename, so that several writers of one piece, on several machines, do no harm. Pieces lie
beside the artifact in `<name>.pieces/<basis>/`: what was made from another basis is never seen.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.store.array_file import Array, ArraySpec, ArrayWriter
from retroflow.store.atomic import canonical_json, write_file
from retroflow.store.hashing import with_digests
from retroflow.store.manifest import FileEntry, damaged, fingerprint_of

JOINED_BLOCK_BYTES = 4 << 20
PIECES_ENDING = ".pieces"


def pieces_folder(folder: Path, basis: Mapping[str, Any]) -> Path:
    """Where the pieces of an artifact are.

    Args:
        folder: the artifact's folder.
        basis: JSON values: everything the pieces depend on that is not in the artifact's name.
    """
    return folder.with_name(folder.name + PIECES_ENDING) / fingerprint_of(basis)


def discard_pieces(folder: Path) -> None:
    """Remove all pieces of an artifact; a process that is still writing some gets a FileNotFoundError."""
    shutil.rmtree(folder.with_name(folder.name + PIECES_ENDING), ignore_errors=True)


def has_shards(folder: Path) -> bool:
    """Say whether any shard has begun on the artifact of this folder, on any basis."""
    return any(folder.with_name(folder.name + PIECES_ENDING).glob("*/shard-*"))


class Pieces:
    """The pieces of a stage, numbered in their final order, and notes of the shards that make them.

    Attributes:
        folder: of the blocks; made at the beginning of a stage.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def note_shard(self, number: int, count: int) -> None:
        """Leave a note that shard number/count has begun."""
        write_file(self.folder / f"shard-{number}-of-{count}", b"")

    def shards(self) -> set[tuple[int, int]]:
        """(number, count) of every shard that has ever begun."""
        matches = (re.fullmatch(r"shard-(\d+)-of-(\d+)", path.name) for path in self.folder.glob("shard-*"))
        return {(int(match[1]), int(match[2])) for match in matches if match}

    def present(self) -> set[int]:
        """Numbers of the pieces whose file is there; their bytes are not looked at."""
        try:
            return {int(path.stem) for path in self.folder.glob("*.piece")}
        except FileNotFoundError:  # discarded while it was listed
            return set()

    def find(self, piece: int, source: str = "") -> dict[str, Array] | None:
        """Every array of a piece; None if it is not there, not whole, or made from another source."""
        try:
            header, content = self._read(piece)
            whole = hashlib.sha256(content).hexdigest() == header["sha256"] and header["source"] == source
            return _arrays(header["arrays"], content) if whole else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, piece: int, arrays: Mapping[str, Array], source: str = "") -> None:
        """Write a piece: its rows of every array, by name."""
        layout, parts, offset = {}, [], 0
        for name, array in arrays.items():
            part = np.ascontiguousarray(array).tobytes()
            layout[name] = {"offset": offset, "dtype": array.dtype.str, "shape": list(array.shape)}
            parts.append(part)
            offset += len(part)
        content = b"".join(parts)
        header = {"arrays": layout, "sha256": hashlib.sha256(content).hexdigest(), "source": source}
        write_file(self._path(piece), canonical_json(header) + b"\n" + content)

    def specs(self, count: int) -> dict[str, ArraySpec]:
        """Name of every array in pieces 0 to `count` to the file that they are joined to."""
        specs: dict[str, ArraySpec] = {}
        for piece in range(count):
            with self._path(piece).open("rb") as stream:
                layout = json.loads(stream.readline())["arrays"]
            for name, array in layout.items():
                rows, *rest = array["shape"]
                rows += specs[name].shape[0] if name in specs else 0
                specs[name] = ArraySpec(f"{name}.npy", np.dtype(array["dtype"]), (rows, *rest))
        return specs

    def read(self, piece: int, source: str = "") -> dict[str, Array]:
        """Every array of a piece that was found before.

        Raises:
            DamagedDataError: its bytes have changed since.
        """
        arrays = self.find(piece, source)
        if arrays is None:
            raise damaged(self._path(piece), "its bytes have changed since they were checked", self.folder)
        return arrays

    def _path(self, piece: int) -> Path:
        return self.folder / f"{piece:08d}.piece"

    def _read(self, piece: int) -> tuple[dict[str, Any], bytes]:
        header, _, content = self._path(piece).read_bytes().partition(b"\n")
        return json.loads(header), content


def _arrays(layout: Mapping[str, Any], content: bytes) -> dict[str, Array]:
    arrays = {}
    for name, array in layout.items():
        count = int(np.prod(array["shape"], dtype=np.int64))
        flat = np.frombuffer(content, dtype=array["dtype"], count=count, offset=array["offset"])
        arrays[name] = flat.reshape(array["shape"])
    return arrays


def join_pieces(
    partial: Path,
    pieces: Pieces,
    sources: Sequence[str],
    shift: Callable[[dict[str, Array]], dict[str, Array]] = dict,
) -> dict[str, FileEntry]:
    """Write the pieces' arrays one after the other into array files; returns their manifest entries.

    Args:
        partial: the artifact in the making.
        pieces: where the rows are.
        sources: what every piece, from 0 on, was made from.
        shift: gives what to write for the arrays of a piece, as many rows; called in the order of the pieces.
    """
    writers: dict[str, ArrayWriter] = {}
    try:
        for name, spec in pieces.specs(len(sources)).items():
            writers[name] = ArrayWriter(partial, spec)
        rows = dict.fromkeys(writers, 0)
        for piece, source in enumerate(sources):
            for name, array in shift(pieces.read(piece, source)).items():
                writers[name].write(rows[name], array)
                rows[name] += len(array)
        for name, writer in writers.items():
            if rows[name] != writer.spec.shape[0]:
                raise ValueError(f"{writer.spec.name}: the pieces gave {rows[name]} rows of {writer.spec.shape[0]}")
            writer.sync()
        return {writer.spec.name: _entry(writer) for writer in writers.values()}
    finally:
        for writer in writers.values():
            writer.close()


def _entry(writer: ArrayWriter) -> FileEntry:
    row_bytes = writer.spec.row_bytes
    block_bytes = max(1, JOINED_BLOCK_BYTES // row_bytes) * row_bytes
    return with_digests(writer.path, writer.entry(block_bytes, ()))
