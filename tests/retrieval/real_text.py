"""Real embeddings at little cost: hashed character trigrams of real text, no weights needed."""

import os
import zlib
from pathlib import Path

import numpy as np

from retroflow.protocols import Float32Array

CHUNK_CHARACTERS = 250


def hashed_embeddings(num_chunks: int = 1_500, dimension: int = 64) -> Float32Array | None:
    """Embed text of RETROFLOW_TEST_DATA; float32 [num_chunks, dimension] of unit length, None if it is unset."""
    folder = os.environ.get("RETROFLOW_TEST_DATA")
    text = _text(Path(folder), num_chunks * CHUNK_CHARACTERS) if folder else ""
    if len(text) < num_chunks * CHUNK_CHARACTERS:
        return None
    counts = np.zeros((num_chunks, 4096), np.float32)
    for row in range(num_chunks):
        chunk = text[row * CHUNK_CHARACTERS : (row + 1) * CHUNK_CHARACTERS]
        hashes = [zlib.crc32(chunk[start : start + 3].encode()) % 4096 for start in range(len(chunk) - 2)]
        np.add.at(counts[row], hashes, 1.0)
    weights = np.log(num_chunks / (1.0 + (counts > 0).sum(axis=0)))
    projected = np.sqrt(counts) * weights @ np.random.default_rng(0).normal(size=(4096, dimension))
    unit: Float32Array = (projected / np.linalg.norm(projected, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _text(folder: Path, length: int) -> str:
    found = ""
    for path in sorted(folder.glob("*/*")):
        if path.suffix in (".txt", ".tokens", ".md") and path.is_file() and len(found) < length:
            found += path.read_text(encoding="utf-8", errors="replace")[:length]
    return found
