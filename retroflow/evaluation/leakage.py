"""How much of an evaluated chunk can be copied from what was retrieved for it.

r(C) = s / m, with s the longest run of tokens that C has in common with one of its neighbours or their
continuations. Source: Borgeaud et al. 2022, section 2.6.

Shapes: N chunks, m tokens of a chunk, k neighbours, r = 2m retrieved tokens.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retroflow.evaluation.perplexity import Measure
from retroflow.protocols import Int64Array

BUCKET_EDGES = (0.0, 0.125, 0.25, 0.5, 1.0)
"""Borders of the buckets of overlap; up to 0.125 (fewer than 8 of 64 tokens in a row) is "no local leakage"."""


def longest_common_runs(
    tokens: Int64Array, lengths: Int64Array, retrieved: Int64Array, real: NDArray[np.bool_]
) -> Int64Array:
    """Return the length of the longest run of tokens that each chunk has in common with its retrieved text.

    Args:
        tokens: int64 [N, m].
        lengths: int64 [N], text tokens of each chunk; the rest is padding.
        retrieved: int64 [N, k, r].
        real: bool [N, k, r], False where nothing was retrieved.

    Returns:
        int64 [N], tokens. Takes O(N * k * m * r) comparisons, vectorised over all but m.
    """
    runs = np.zeros(retrieved.shape, dtype=np.int16)
    longest = np.zeros(len(tokens), dtype=np.int16)
    for position in range(tokens.shape[1]):
        inside = (position < lengths)[:, None, None]
        same = (retrieved == tokens[:, position, None, None]) & real & inside
        before = np.zeros_like(runs)
        before[..., 1:] = runs[..., :-1]
        runs = np.where(same, before + 1, 0).astype(np.int16)
        longest = np.maximum(longest, runs.max(axis=(1, 2), initial=0))
    return longest.astype(np.int64)


@dataclass(frozen=True)
class OverlapBucket:
    """Losses of the chunks whose overlap is in (above, up_to] (the first bucket includes 0).

    Attributes:
        above: lower edge of the overlap.
        up_to: upper edge of the overlap.
        chunks: number of chunks.
        tokens: predicted tokens in them.
        loss_on: nats per token with retrieval.
        loss_off: nats per token without.
    """

    above: float
    up_to: float
    chunks: int
    tokens: int
    loss_on: float
    loss_off: float


def by_overlap(overlaps: NDArray[np.float64], on: Measure, off: Measure) -> list[OverlapBucket]:
    """Group the chunks' losses by overlap float64 [N], 0 to 1; empty buckets are left out."""
    buckets = []
    for above, up_to in itertools.pairwise(BUCKET_EDGES):
        inside = (overlaps > above) & (overlaps <= up_to)
        if above == BUCKET_EDGES[0]:
            inside |= overlaps == above
        tokens = int(on.chunk_tokens[inside].sum())
        if tokens:
            buckets.append(
                OverlapBucket(
                    above=above,
                    up_to=up_to,
                    chunks=int(inside.sum()),
                    tokens=tokens,
                    loss_on=float(on.chunk_nats[inside].sum()) / tokens,
                    loss_off=float(off.chunk_nats[inside].sum()) / tokens,
                )
            )
    return buckets


def overlaps_of(parts: Iterable[tuple[Int64Array, Int64Array, Int64Array, NDArray[np.bool_]]]) -> NDArray[np.float64]:
    """Return the overlap r(C) float64 [N] of chunks, from batches of arguments for `longest_common_runs`."""
    found = [longest_common_runs(*part) / part[0].shape[1] for part in parts]
    return np.concatenate(found) if found else np.zeros(0)
