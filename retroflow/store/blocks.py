"""Work in blocks that survive being killed: a block's rows are written and fsynced, then its marker.

A marker holds the SHA-256 of the block in every file. After a restart a block whose marker is there and whose bytes
match is done; every other one is made again. One process writes at a time, under the artifact's lock; what several
make together is written as pieces first (retroflow.store.pieces), for two machines that write into one file of a
network filesystem lose each other's rows.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from retroflow.store.array_file import Array, ArraySpec, ArrayWriter
from retroflow.store.artifact import BLOCKS_FOLDER
from retroflow.store.atomic import canonical_json, sync_tree, write_file
from retroflow.store.hashing import describe_tree, first_difference, hash_range
from retroflow.store.manifest import FileEntry


class BlockedArrays:
    """Arrays of equal length that are filled in blocks of rows, in any order, over any number of runs.

    Args:
        partial: the `.partial` folder of the artifact in the making.
        group: name of this set of blocks, "train".
        specs: the arrays; all have the same number of rows.
        rows_per_block: rows of every block but the last.
    """

    def __init__(self, partial: Path, group: str, specs: Sequence[ArraySpec], rows_per_block: int) -> None:
        self.num_rows = specs[0].shape[0]
        self.rows_per_block = rows_per_block
        self.num_blocks = -(-self.num_rows // rows_per_block)
        self._markers = partial / BLOCKS_FOLDER / group
        self._markers.mkdir(parents=True, exist_ok=True)
        self._writers: list[ArrayWriter] = []
        try:
            for spec in specs:
                self._writers.append(ArrayWriter(partial, spec))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        while self._writers:
            self._writers.pop().close()

    def rows(self, block: int) -> slice:
        """The rows of a block."""
        return slice(block * self.rows_per_block, min((block + 1) * self.rows_per_block, self.num_rows))

    def missing(self) -> list[int]:
        """Blocks that are not done, in order; reads the bytes of those that are."""
        return [block for block in range(self.num_blocks) if not self._is_done(block)]

    def write(self, block: int, arrays: Mapping[str, Array]) -> None:
        """Write a block: rows of every array, by file name, then fsync, then the marker."""
        rows = self.rows(block)
        for writer in self._writers:
            array = arrays[writer.spec.name]
            if len(array) != rows.stop - rows.start:
                raise ValueError(f"{writer.spec.name}: {len(array)} rows for {rows.stop - rows.start} of block {block}")
            writer.write(rows.start, array)
            writer.sync()
        write_file(self._marker(block), canonical_json(self._digests(block)))

    def entries(self) -> dict[str, FileEntry]:
        """Manifest entries of the finished arrays."""
        markers = [self._read_marker(block) for block in range(self.num_blocks)]
        empty = self._digests(0)  # an array without rows still has its header
        return {
            writer.spec.name: writer.entry(
                self.rows_per_block * writer.spec.row_bytes,
                tuple(marker[writer.spec.name] for marker in markers) or (empty[writer.spec.name],),
            )
            for writer in self._writers
        }

    def _marker(self, block: int) -> Path:
        return self._markers / f"{block:08d}.json"

    def _read_marker(self, block: int) -> dict[str, str]:
        values: dict[str, str] = json.loads(self._marker(block).read_bytes())
        return values

    def _is_done(self, block: int) -> bool:
        try:
            return self._read_marker(block) == self._digests(block)
        except (OSError, ValueError):
            return False

    def _digests(self, block: int) -> dict[str, str]:
        digests = {}
        for writer in self._writers:
            entry = writer.entry(self.rows_per_block * writer.spec.row_bytes, ())
            digests[writer.spec.name] = hash_range(writer.descriptor, *entry.block_range(block))
        return digests


def marked_blocks(partial: Path, group: str) -> set[int]:
    """Blocks of a group that have a marker; their bytes are not looked at."""
    return {int(path.stem) for path in (partial / BLOCKS_FOLDER / group).glob("*.json")}


def keep_folder(partial: Path, name: str) -> dict[str, FileEntry]:
    """Mark a subfolder that a library wrote (tokenizer, embedder, index) as done; returns its manifest entries."""
    sync_tree(partial / name)
    entries = describe_tree(partial / name, name)
    marker = partial / BLOCKS_FOLDER / f"{name}.json"
    marker.parent.mkdir(exist_ok=True)
    write_file(marker, canonical_json({path: entry.to_json() for path, entry in entries.items()}))
    return entries


def kept_folder(partial: Path, name: str) -> dict[str, FileEntry] | None:
    """Manifest entries of a subfolder that an earlier run finished, or None if it is not there as it was."""
    try:
        values: Mapping[str, Any] = json.loads((partial / BLOCKS_FOLDER / f"{name}.json").read_bytes())
        entries = {path: FileEntry.from_json(entry) for path, entry in values.items()}
        present = {f"{name}/{path.relative_to(partial / name).as_posix()}" for path in _files(partial / name)}
        sizes_match = all(os.stat(partial / path).st_size == entry.num_bytes for path, entry in entries.items())
        if present != set(entries) or not sizes_match or first_difference(partial, entries.items()):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return entries


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
