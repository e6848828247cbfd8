"""Baselines for retrieval: the same model with another chunk's or random neighbours, or with halves of its own.

Shapes: N chunks of the evaluated split, k neighbours, T chunks of the database; S sequences of W windows.
"""

from dataclasses import replace

import numpy as np
import torch

from retroflow.data import Batch
from retroflow.data.windows import WindowTable
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


def at_random(shape: tuple[int, int], *, database_chunks: int, seed: int) -> Int64Array:
    """Draw int64 [N, k] rows of the database, every chunk with the same probability."""
    return np.random.default_rng([seed, *shape]).integers(database_chunks, size=shape, dtype=np.int64)


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
