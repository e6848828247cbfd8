"""Baselines for retrieval: the same model with another chunk's or random neighbours, or with halves of its own.

Shapes: N chunks of the evaluated split, k neighbours, T chunks of the database; S sequences of W windows.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from retroflow.data import Batch
from retroflow.data.windows import WindowTable
from retroflow.evaluation.intervals import Interval
from retroflow.protocols import Int64Array


def shuffled(neighbours: Int64Array, *, seed: int, questions: bool = False) -> Int64Array:
    """Return for every chunk the neighbours of another chunk of the split, never its own.

    The rows follow one random cycle through all chunks. In a split of one chunk there is no other: -1.

    Args:
        neighbours: int64 [N, k].
        seed: chooses the cycle.
        questions: whether every second chunk is an answer, which has no neighbours to give and keeps none.
    """
    mixed = np.array(neighbours)
    own = mixed[:: 2 if questions else 1]  # a view
    count = len(own)
    if count == 1:
        own[:] = -1
        return mixed
    cycle = np.random.default_rng([seed, count]).permutation(count)
    donors = np.empty(count, dtype=np.int64)
    donors[cycle] = np.roll(cycle, 1)
    own[:] = own[donors]
    return mixed


def at_random(found: Int64Array, *, database_chunks: int, seed: int) -> Int64Array:
    """Return random rows of the database in the place of those found, int64 [N, k], each with the same probability.

    Where nothing was found there is nothing, so that not more is read than was found.
    """
    drawn = np.random.default_rng([seed, *found.shape]).integers(database_chunks, size=found.shape, dtype=np.int64)
    return np.where(found < 0, -1, drawn)


def shuffled_windows(table: WindowTable, *, seed: int) -> WindowTable:
    """Return for every sequence the neighbours of another one, window by window; see `shuffled`."""
    rows = shuffled(np.arange(len(table.sequences))[:, None], seed=seed)[:, 0]
    return replace(table, ids=np.where(rows[:, None, None] < 0, -1, table.ids[rows]), scores=None)


def random_windows(table: WindowTable, *, database_chunks: int, seed: int) -> WindowTable:
    """Return random chunks of the database in the place of those found.

    A chunk that was found for several windows of a sequence becomes the same random one in all of them, so that a
    sequence reads as many different chunks, for as long.
    """
    ids = np.full_like(table.ids, -1)
    generator = np.random.default_rng([seed, *table.ids.shape])
    for row, found in enumerate(table.ids):
        _, places = np.unique(found, return_inverse=True)
        drawn = generator.integers(database_chunks, size=places.max(initial=0) + 1, dtype=np.int64)
        ids[row] = np.where(found < 0, -1, drawn[places.reshape(found.shape)])
    return replace(table, ids=ids, scores=None)


def share_without_neighbours(neighbours: Int64Array) -> float:
    """Return the share of chunks without any neighbour, 0 to 1."""
    return float((np.asarray(neighbours) < 0).all(axis=1).mean())


def neighbour_only(batch: Batch) -> Batch:
    """Return a batch whose neighbours have no continuations: of r = 2m retrieved tokens the first m stay."""
    return _half(batch, slice(None, _retrieved_length(batch) // 2))


def continuation_only(batch: Batch) -> Batch:
    """Return a batch with the continuations of its neighbours alone: of r = 2m retrieved tokens the last m stay."""
    return _half(batch, slice(_retrieved_length(batch) // 2, None))


def _half(batch: Batch, kept: slice) -> Batch:
    assert batch.retrieved_mask is not None
    mask = torch.zeros_like(batch.retrieved_mask)
    mask[..., kept] = batch.retrieved_mask[..., kept]
    return batch._replace(retrieved_mask=mask)


def _retrieved_length(batch: Batch) -> int:
    assert batch.retrieved is not None
    return batch.retrieved.shape[-1]


SAME = 1e-4
"""Nats per token by which losses may differ to be called the same; rounding of float32 makes some 1e-6."""

WRONG = {
    "random": ("random ones", "Whatever on gains over off does not come from what was retrieved."),
    "shuffled": (
        "those of other chunks",
        "Whatever on gains over off does not come from what was retrieved for the chunk itself.",
    ),
}
"""Modes with wrong neighbours: what these are, and what it means if found ones are no better."""


def without_effect(same: Sequence[str], effect: float | None = None) -> str | None:
    """State that a model does not read, or reads the same whatever is retrieved; None if it reads.

    Args:
        same: modes whose losses are those of "on", everywhere.
        effect: largest change of a log-probability that other neighbours made, in nats; None if it is not known.
    """
    if "off" in same:
        also = [mode for mode in same if mode != "off"]
        others = f" So do {', '.join(also)}." if also else ""
        return f"Retrieval is switched off inside this model: on equals off on every token, to {SAME:g} nats.{others}"
    wrong = [mode for mode in same if mode in (*WRONG, "topic_matched")]
    if not wrong and (effect is None or effect > SAME):
        return None
    seen = f"on equals {', '.join(wrong)} on every token" if wrong else "other neighbours change no logit"
    return f"What is retrieved makes no difference to this model: {seen}, to {SAME:g} nats."


def no_better(mode: str, below: float, bounds: Interval | None) -> str | None:
    """State that found neighbours are no better than those of a mode of `WRONG`; None if they are better.

    Args:
        mode: with wrong neighbours.
        below: by how many nats per token "on" is below it.
        bounds: 95 % interval of that; None if there is none.
    """
    if below > 0 and (bounds is None or bounds[0] > 0):
        return None
    stated = "no interval" if bounds is None else f"95% interval {bounds[0]:.4f} to {bounds[1]:.4f}"
    what, so = WRONG[mode]
    return f"Found neighbours are no better than {what}: on is {below:.4f} nats per token below {mode} ({stated}). {so}"
