"""Defaults for faiss: the factory string, and the training sample.

Shapes: N vectors, D embedding width.
"""

import math

import numpy as np

from retroflow.protocols import Float32Array, VectorSource

READ_ROWS = 4_096
LARGEST_SAMPLE_BYTES = 2**30
NPROBE_SWEEP, EF_SWEEP = (1, 2, 4, 8, 16, 32, 64, 128, 256), (10, 16, 32, 64, 128, 256, 512)
"""Values of `search.nprobe` and `search.ef_search` that `retroflow bench` measures."""

LISTS_SAMPLE_BYTES = 24 << 20  # of an index whose lists are on disk


def auto_factory(count: int, dimension: int) -> tuple[str, str]:
    """Choose a factory string by the number N and width D of the vectors; returns it and the reason.

    Source: docs/retrievers.md, measured at N = 40,696; list counts after the faiss wiki (4 sqrt N) and autofaiss.
    """
    if count < 10_000:
        return "Flat", f"{count} vectors are few enough for exact search"
    lists = 2 ** round(math.log2(4 * math.sqrt(count)))
    if count < 1_000_000:
        return f"IVF{lists},SQfp16", f"4 sqrt(N) lists for {count} vectors, 2 bytes per number"
    lists = 16_384 if count < 10_000_000 else 65_536 if count < 300_000_000 else 131_072
    coarse, reason = f"IVF{lists}_HNSW32", f"{count} vectors: an HNSW graph finds the lists"
    if dimension % 2:  # product quantisers need equal parts
        return f"{coarse},SQfp16", reason
    return f"{coarse},PQ{dimension // 2}x4fs,Refine(SQfp16)", f"{reason}, 4-bit codes scan them, float16 ranks the best"


def sample_size(lists: int, dimension: int, *, on_disk: bool) -> int:
    """Return the number of training vectors; on_disk: the index is inverted lists that stay on disk."""
    allowed = (
        max(LISTS_SAMPLE_BYTES // (4 * dimension), 8 * lists) if on_disk else LARGEST_SAMPLE_BYTES // (4 * dimension)
    )
    return min(max(40 * lists, 65_536), allowed)


def training_sample(vectors: VectorSource, size: int) -> Float32Array:
    """Read up to `size` rows spread evenly over vectors [N, D], block by block."""
    count, dimension = vectors.shape
    rows = np.linspace(0, count, min(size, count), endpoint=False).astype(np.int64)
    sample = np.empty((len(rows), dimension), np.float32)
    for start in range(0, count, READ_ROWS):
        first, last = np.searchsorted(rows, [start, start + READ_ROWS])
        if first < last:
            sample[first:last] = vectors[start : start + READ_ROWS][rows[first:last] - start]
    return sample
