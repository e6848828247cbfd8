"""SHA-256 of files in blocks, several at a time: hashing releases the interpreter lock."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from retroflow.store.manifest import FileEntry

FILE_BLOCK_BYTES = 4 << 20
MAX_THREADS = 8
WINDOW_BLOCKS = 64


def hash_range(descriptor: int, start: int, stop: int) -> str:
    """Return the SHA-256 of bytes start..stop of an open file; fewer bytes are hashed if it is shorter."""
    digest = hashlib.sha256()
    while start < stop:
        part = os.pread(descriptor, min(stop - start, 1 << 20), start)
        if not part:
            break
        digest.update(part)
        start += len(part)
    return digest.hexdigest()


def describe_file(path: Path) -> FileEntry:
    """Return the current size and block hashes of a file."""
    return with_digests(path, FileEntry(path.stat().st_size, 0, FILE_BLOCK_BYTES, ()))


def with_digests(path: Path, entry: FileEntry) -> FileEntry:
    """Return the entry with the current hashes of a file's blocks."""
    num_blocks = max(1, -(-(entry.num_bytes - entry.header_bytes) // entry.block_bytes))
    blank = replace(entry, sha256=("",) * num_blocks)
    return replace(entry, sha256=tuple(digest for _, digest in _hash_blocks([(path, blank)])))


def describe_tree(folder: Path, prefix: str) -> dict[str, FileEntry]:
    """Return the entries of all files below folder, with names that begin with prefix + "/"."""
    return {
        f"{prefix}/{path.relative_to(folder).as_posix()}": describe_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def first_difference(folder: Path, files: Iterable[tuple[str, FileEntry]]) -> tuple[str, int] | None:
    """Find the first block, as (file name, block), whose bytes differ from its entry."""
    files = list(files)
    names = [name for name, entry in files for _ in entry.sha256]
    expected = [digest for _, entry in files for digest in entry.sha256]
    hashed = _hash_blocks([(folder / name, entry) for name, entry in files])
    for name, digest, (block, actual) in zip(names, expected, hashed, strict=True):
        if actual != digest:
            return name, block
    return None


def _hash_blocks(files: list[tuple[Path, FileEntry]]) -> Iterator[tuple[int, str]]:
    """Yield (block, digest) of every block of every file, in order."""
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for path, entry in files:
            blocks = range(len(entry.sha256))
            # Only a few blocks are submitted at a time, so a file of a million blocks is not a million futures.
            for first in range(0, len(blocks), WINDOW_BLOCKS):
                window = blocks[first : first + WINDOW_BLOCKS]
                yield from zip(window, pool.map(partial(_hash_block, path, entry), window), strict=True)


def _hash_block(path: Path, entry: FileEntry, block: int) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return hash_range(descriptor, *entry.block_range(block))
    finally:
        os.close(descriptor)
