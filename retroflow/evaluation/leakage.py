"""How much of an evaluated chunk can be copied from text that the model has read, and what that is worth.

r(C) = s / m, with s the longest run of tokens that C has in common with a text: with its neighbours and their
continuations, or with the 10 nearest chunks. bpb(alpha) = sum of l(C) / sum of bytes(C) over chunks with
r(C) <= alpha. Source: Borgeaud et al. 2022, section 2.6.

The paper calls fewer than 8 of 64 tokens (section 4.4) "no local leakage": a chunk leaks from r(C) = 12.5 % on.

Shapes: N chunks, m tokens of a chunk, k neighbours, r = 2m retrieved tokens; b sequences of l chunks and W windows.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.data.windows import WindowTable
from retroflow.evaluation.perplexity import Measure
from retroflow.pipeline.splits import Splits
from retroflow.protocols import Int64Array

THRESHOLD = 0.125
"""A chunk leaks if its overlap is this or more: 8 of 64 tokens in a row."""

BUCKET_EDGES = (0.0, THRESHOLD, 0.25, 0.5, 1.0)
"""Borders of the buckets of overlap; below the first one is no local leakage."""

ALPHAS = tuple(eighths / 8 for eighths in range(1, 9))
"""Overlaps up to which bits per byte are stated, as in the paper's figure 6."""

NEAREST = 10
"""Nearest chunks that the paper compares a chunk with."""

_SEQUENCES_AT_ONCE = 16

_CELLS_AT_ONCE = 1 << 16
"""Compared tokens whose runs stay in the processor's cache."""


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
    longest = np.zeros(len(tokens), dtype=np.int64)
    rows = max(1, _CELLS_AT_ONCE // max(1, math.prod(retrieved.shape[1:])))
    for start in range(0, len(tokens), rows):
        part = slice(start, start + rows)
        text = np.where(np.arange(tokens.shape[1]) < lengths[part, None], tokens[part], -2).astype(np.int32)
        longest[part] = _longest_runs(text, np.where(real[part], retrieved[part], -1).astype(np.int32))
    return longest


def _longest_runs(tokens: NDArray[np.int32], retrieved: NDArray[np.int32]) -> Int64Array:
    """Return int64 [b]; negative tokens of the two are never equal."""
    m = tokens.shape[1]
    small = np.uint8 if m < 256 else np.uint16
    shape = (*retrieved.shape[:2], retrieved.shape[2] + 1)
    runs, longer, same = np.zeros(shape, small), np.zeros(shape, small), np.empty(retrieved.shape, bool)
    longest = np.zeros(retrieved.shape, small)
    for position in range(m):
        np.equal(retrieved, tokens[:, position, None, None], out=same)
        np.add(runs[..., :-1], small(1), out=longer[..., 1:])
        np.multiply(longer[..., 1:], same, out=longer[..., 1:])
        np.maximum(longest, longer[..., 1:], out=longest)
        runs, longer = longer, runs
    return longest.max(axis=(1, 2), initial=0).astype(np.int64)


@dataclass(frozen=True)
class OverlapBucket:
    """Losses of the chunks whose overlap is in [at_least, below); the last bucket includes 1.

    Attributes:
        at_least: lower edge of the overlap.
        below: upper edge of the overlap.
        chunks: number of chunks.
        tokens: predicted tokens in them.
        loss_on: nats per token with retrieval.
        loss_off: nats per token without.
    """

    at_least: float
    below: float
    chunks: int
    tokens: int
    loss_on: float
    loss_off: float


def by_overlap(overlaps: NDArray[np.float64], on: Measure, off: Measure) -> list[OverlapBucket]:
    """Group the chunks' losses by overlap float64 [N], 0 to 1; empty buckets are left out."""
    buckets = []
    for at_least, below in itertools.pairwise(BUCKET_EDGES):
        inside = (overlaps >= at_least) & ((overlaps < below) | (below == BUCKET_EDGES[-1]))
        tokens = int(on.chunk_tokens[inside].sum())
        if tokens:
            buckets.append(
                OverlapBucket(
                    at_least=at_least,
                    below=below,
                    chunks=int(inside.sum()),
                    tokens=tokens,
                    loss_on=float(on.chunk_nats[inside].sum()) / tokens,
                    loss_off=float(off.chunk_nats[inside].sum()) / tokens,
                )
            )
    return buckets


def overlaps_of(
    splits: Splits, table: Int64Array | WindowTable, sequences: Int64Array, *, lookups_read: int = 1
) -> NDArray[np.float64]:
    """Return the overlap r(C) float64 [c] of the chunks of validation sequences, in order.

    With neighbours of chunks, each chunk is compared with those that were found for it (the paper's definition); with
    those of windows, with what its tokens read.

    Args:
        splits: the data.
        table: neighbours, as of `Splits.validation`.
        sequences: int64 [S], ascending.
        lookups_read: how many of the newest lookups a token reads.
    """
    dataset, m, found, done = splits.validation(table), splits.valid_chunks.chunk_length, [np.zeros(0)], 0
    for batch in dataset.in_order(_SEQUENCES_AT_ONCE, sequences):
        assert batch.retrieved is not None and batch.retrieved_mask is not None
        tokens = batch.tokens.view(len(batch.tokens), -1, m).numpy()  # [b, l, m]
        retrieved, real = batch.retrieved.numpy(), batch.retrieved_mask.numpy()  # [b, W, k, r]
        num_rows, num_chunks = tokens.shape[:2]
        if isinstance(table, WindowTable):
            windows = windows_of_chunks(num_chunks, m, table.step, lookups_read)  # [l, V]
            retrieved, real = retrieved[:, windows], real[:, windows] & (windows >= 0)[..., None, None]
        starts = sequences[done : done + num_rows] * splits.sequence_chunks
        lengths = dataset.chunks.lengths[starts[:, None] + np.arange(num_chunks)].astype(np.int64)
        shape = (num_rows * num_chunks, -1, retrieved.shape[-1])
        runs = longest_common_runs(
            tokens.reshape(-1, m), lengths.ravel(), retrieved.reshape(shape), real.reshape(shape)
        )
        found.append(runs / m)
        done += num_rows
    return np.concatenate(found)


def windows_of_chunks(num_chunks: int, m: int, step: int, lookups_read: int) -> Int64Array:
    """Return the windows that the tokens of each chunk read while they are predicted, int64 [l, V]; -1 = none.

    Window w ends with token m + w * step; a token reads the newest ones that ended before it.
    """
    starts = np.arange(num_chunks) * m
    last = (starts - 1) // step  # that of the chunk's last token
    first = (starts - m) // step - (lookups_read - 1)
    windows = first[:, None] + np.arange(int((last - first).max(initial=0)) + 1)
    return np.where((windows >= 0) & (windows <= last[:, None]), windows, -1)


def bits_per_byte_up_to(
    overlaps: NDArray[np.float64],
    chunk_nats: NDArray[np.float64],
    chunk_bytes: Int64Array,
    alphas: Sequence[float] = ALPHAS,
) -> list[float | None]:
    """Return bpb(alpha) for each alpha: bits per byte of the chunks with r(C) <= alpha; None where there are none.

    Args:
        overlaps: float64 [N], 0 to 1.
        chunk_nats: float64 [N].
        chunk_bytes: int64 [N], UTF-8 bytes of each chunk's text.
        alphas: 0 to 1.
    """
    curve: list[float | None] = []
    for alpha in alphas:
        inside = overlaps <= alpha
        num_bytes = int(chunk_bytes[inside].sum())
        curve.append(float(chunk_nats[inside].sum()) / (math.log(2.0) * num_bytes) if num_bytes else None)
    return curve


def overlap_statement(
    buckets: Sequence[OverlapBucket],
    near_duplicates: Mapping[str, Any] | None = None,
    *,
    others: str = "what was retrieved",
) -> str | None:
    """State in words how much of a gain overlap can explain; wherever a gain is printed, this stands beside it.

    Args:
        buckets: of the measured chunks.
        near_duplicates: as `NearDuplicates.to_json` (retroflow/evaluation/near_duplicates.py); None if they were not
            looked for.
        others: the text that the chunks were compared with.

    Returns:
        None if the overlap was not measured: then no gain may be printed.
    """
    chunks = sum(bucket.chunks for bucket in buckets)
    if not chunks:
        return None
    clean = [bucket for bucket in buckets if bucket.at_least < THRESHOLD]
    rest = [bucket for bucket in buckets if bucket.at_least >= THRESHOLD]
    share = sum(bucket.chunks for bucket in clean) / chunks
    sentence = (
        f"Overlap: {share:.1%} of {chunks:,} chunks share less than {THRESHOLD:.1%} of a chunk in a row with "
        f"{others}; the gain is {_gain_of(clean)} on them and {_gain_of(rest)} on the others."
    )
    if near_duplicates is None:
        return f"{sentence} Near-duplicate documents were not looked for (`retroflow compare` does)."
    return f"{sentence} {near_duplicates['statement']}"


def _gain_of(buckets: Sequence[OverlapBucket]) -> str:
    tokens = sum(bucket.tokens for bucket in buckets)
    if not tokens:
        return "not known (there are none)"
    on = sum(bucket.loss_on * bucket.tokens for bucket in buckets) / tokens
    off = sum(bucket.loss_off * bucket.tokens for bucket in buckets) / tokens
    return f"{round(off - on, 4) + 0.0:.4f} nats per token ({round(1.0 - on / off, 3) + 0.0:.1%})"  # no "-0.0%"
