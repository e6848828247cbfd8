"""Checks that arrays agree row for row, within an artifact and between artifacts.

Checksums show that the bytes are those that were written, not that they fit together. Shapes and counts are checked at
every opening. Checks that need every row are made once, when the artifact is made.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from retroflow.errors import DamagedDataError
from retroflow.store.array_file import Array, release_pages
from retroflow.store.manifest import Manifest, damaged

ROWS_AT_A_TIME = 1 << 20


def num_rows(manifest: Manifest) -> dict[str, int]:
    """Return the number of rows of each split of an artifact, one per chunk; an index has the training split only."""
    info = manifest.info
    if manifest.kind == "index":
        return {"train": int(info["chunks"])}
    if manifest.kind == "neighbours":
        return {split: int(rows) for split, rows in info["chunks"].items()}
    return {split: int(counts["chunks"]) for split, counts in info["splits"].items()}


def check_same_rows(folder: Path, manifest: Manifest, chunks: Manifest) -> None:
    """Check that an artifact has one row for every chunk of its chunks artifact.

    Raises:
        DamagedDataError: it has more or fewer.
    """
    expected = num_rows(chunks)
    for split, rows in num_rows(manifest).items():
        if rows != expected[split]:
            raise damaged(folder, f"{rows:,} rows for {expected[split]:,} {split} chunks", folder)


def check_shapes(artifact: Path, manifest: Manifest, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that array files have the expected shapes.

    Args:
        artifact: the artifact's folder.
        manifest: its manifest.
        shapes: path of a file inside the artifact -> its expected shape.

    Raises:
        DamagedDataError: a file is not in the manifest, or has another shape.
    """
    for name, shape in shapes.items():
        if name not in manifest.files:
            raise damaged(artifact / "manifest.json", f'it has no "{name}"', artifact)
        found = manifest.files[name].shape
        if found != shape:
            raise damaged(artifact / name, f"its shape is {list(found)}, and must be {list(shape)}", artifact)


def check_offsets(path: Path, offsets: Array, num_bytes: int) -> None:
    """Check that offsets int64 [documents + 1] begin at 0, increase, and end where the records end.

    Reads all of them, 8 bytes per document, in blocks.

    Args:
        path: their file, in a split's folder of an artifact.
        offsets: its content.
        num_bytes: length of the records.

    Raises:
        DamagedDataError: they do not; the message names file and record.
    """
    first, last = int(offsets[0]), int(offsets[-1])
    if (first, last) != (0, num_bytes):
        what = f"its offsets go from {first:,} to {last:,}, and the records from 0 to {num_bytes:,}"
        raise damaged_rows(path, what)
    for start, block in _overlapping_blocks(offsets):
        rises = np.diff(block) > 0
        if not rises.all():
            raise damaged_rows(path, f"record {start + int(np.argmin(rises))} ends before it begins")


def check_records(path: Path, records: Array, offsets: Array) -> None:
    """Check that every record begins and ends like a JSON list of strings; reads all of them, in blocks.

    Args:
        path: the file of the records.
        records: its content, uint8.
        offsets: int64 [documents + 1], as checked by `check_offsets`.

    Raises:
        DamagedDataError: one does not; the message names file and record.
    """
    for start, block in _overlapping_blocks(offsets):
        fits = (records[block[:-1]] == ord("[")) & (records[block[1:] - 1] == ord("]"))
        if not fits.all():
            raise damaged_rows(path, f"record {start + int(np.argmin(fits))} is not where its offset says")
        release_pages(records)


def damaged_rows(path: Path, what: str) -> DamagedDataError:
    """Return the error for a split's array file, `<artifact>/<split>/<name>.npy`, that does not fit the others."""
    return damaged(path, what, path.parents[1])


def _overlapping_blocks(array: Array) -> Iterator[tuple[int, Array]]:
    """Yield (first row, rows) of blocks, each with the first row of the next, so that each pair of rows is in one."""
    for start in range(0, len(array) - 1, ROWS_AT_A_TIME):
        yield start, np.asarray(array[start : start + ROWS_AT_A_TIME + 1])
        release_pages(array)
