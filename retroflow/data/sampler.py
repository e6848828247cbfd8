"""The order of the training data: a pure function of (seed, step, rank, world size), with a step as its only state.

The stream of sequences is the concatenation of all epochs. Position p is sequence `p % count` of epoch `p // count`,
shuffled by a keyed permutation. The permutation is computed only for the needed positions, so neither memory nor the
time to resume grows with the corpus. Step s takes positions [s * batch_size, (s + 1) * batch_size). Ranks and
accumulation only divide them, so their number does not change the order.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from retroflow.errors import CorpusError, UsageError
from retroflow.protocols import Int64Array

_FEISTEL_ROUNDS = 8
_UInt64Array = NDArray[np.uint64]


def permute(positions: Int64Array, count: int, *, key: tuple[int, ...]) -> Int64Array:
    """Map positions int64 [p] in [0, count) through the permutation of range(count) with the given key.

    A Feistel network over the next even power of two, applied until the value is below `count`: a bijection for any
    round function, in O(p) time and memory. Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains"
    (cycle walking).
    """
    half_bits = max(1, ((count - 1).bit_length() + 1) // 2)
    round_keys = np.random.SeedSequence(key).generate_state(_FEISTEL_ROUNDS, np.uint64).astype(np.uint64)
    values = _feistel(positions.astype(np.uint64), half_bits, round_keys)
    while (outside := values >= count).any():
        values[outside] = _feistel(values[outside], half_bits, round_keys)
    return values.astype(np.int64)


def _feistel(values: _UInt64Array, half_bits: int, round_keys: _UInt64Array) -> _UInt64Array:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix(right + round_key) & mask)
    return (left << shift) | right


def _mix(values: _UInt64Array) -> _UInt64Array:
    """Spread every input bit over the word: the finaliser of splitmix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class StepBatches(Sampler[list[int]]):
    """Endless batches of first chunks of training sequences, for one rank.

    Args:
        num_chunks: chunks of the training split.
        sequence_chunks: chunks of a sequence.
        batch_size: sequences of an optimizer step, over all ranks and micro-batches.
        accumulate: micro-batches of a rank per step.
        seed: of the order.
        rank: this process, in [0, world_size).
        world_size: number of processes.
        start_step: the first optimizer step, the sampler's whole state.
        shifts: whether sequences may begin at any chunk; else they begin at every `sequence_chunks`-th.

    Raises:
        CorpusError: the split is shorter than one sequence.
        UsageError: `batch_size` is not a multiple of world_size * accumulate.
    """

    def __init__(  # noqa: PLR0913  # each decides the order
        self,
        *,
        num_chunks: int,
        sequence_chunks: int,
        batch_size: int,
        accumulate: int = 1,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        shifts: bool = True,
    ) -> None:
        if num_chunks < sequence_chunks:
            raise CorpusError(
                f"data.sequence_chunks is {sequence_chunks}, but the training split has {num_chunks} chunks. "
                "Use a larger corpus or a smaller data.sequence_chunks."
            )
        if batch_size % (world_size * accumulate):
            raise UsageError(
                f"trainer.batch_size is {batch_size}, which cannot be divided over {world_size} processes x "
                f"trainer.accumulate {accumulate}; make it a multiple of {world_size * accumulate}."
            )
        self._sequence_chunks, self._batch_size, self._accumulate = sequence_chunks, batch_size, accumulate
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self.step = start_step
        # Sequences shift by less than their length from epoch to epoch, so that a chunk gets different left contexts.
        self._num_offsets = sequence_chunks if shifts and num_chunks >= 2 * sequence_chunks - 1 else 1
        self.num_sequences = (num_chunks - self._num_offsets + 1) // sequence_chunks

    def starts(self, step: int) -> Int64Array:
        """Return the first chunks int64 [batch_size] of the sequences of an optimizer step, over all ranks."""
        positions = np.arange(step * self._batch_size, (step + 1) * self._batch_size, dtype=np.int64)
        epochs, within = np.divmod(positions, self.num_sequences)
        starts = np.empty_like(positions)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            of_epoch = epochs == epoch
            order = permute(within[of_epoch], self.num_sequences, key=(self._seed, epoch))
            offset = int(np.random.default_rng([self._seed, epoch]).integers(self._num_offsets))
            starts[of_epoch] = offset + order * self._sequence_chunks
        return starts

    def __iter__(self) -> Iterator[list[int]]:
        step = self.step
        while True:
            pieces = self.starts(step).reshape(self._accumulate, self._world_size, -1)
            for piece in pieces[:, self._rank]:
                yield piece.tolist()
            step += 1
