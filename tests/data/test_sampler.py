"""The order of the data is a pure function of seed and step; ranks only share it."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retroflow.data.sampler import StepBatches, permute
from retroflow.errors import CorpusError, UsageError


def batches(**changes):
    options = {"num_chunks": 103, "sequence_chunks": 4, "batch_size": 6, "seed": 3} | changes
    return StepBatches(**options)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_permute_is_a_permutation_that_depends_on_its_key(count):
    positions = np.arange(count)
    first, second = permute(positions, count, key=(1, 2)), permute(positions, count, key=(1, 3))
    assert sorted(first.tolist()) == positions.tolist()
    assert count < 16 or (first != second).any()


def test_permute_answers_single_positions_as_it_answers_all():
    whole = permute(np.arange(1000), 1000, key=(7,))
    assert permute(np.array([421, 3]), 1000, key=(7,)).tolist() == whole[[421, 3]].tolist()


def test_permute_spreads_neighbouring_positions():
    gaps = np.abs(np.diff(permute(np.arange(10_000), 10_000, key=(0,))))
    assert 3000 < gaps.mean() < 3700  # a uniform permutation's mean gap is a third


def test_every_sequence_is_seen_once_in_an_epoch():
    sampler = batches(batch_size=5)
    seen = list(itertools.islice(itertools.chain.from_iterable(sampler), 2 * sampler.num_sequences))
    first, second = seen[: sampler.num_sequences], seen[sampler.num_sequences :]
    for epoch in (first, second):
        assert len(set(epoch)) == sampler.num_sequences
        assert np.diff(sorted(epoch)).tolist() == [4] * (sampler.num_sequences - 1)
        assert 0 <= min(epoch) and max(epoch) + 4 <= 103
    assert first != second


def test_a_start_step_goes_on_exactly_there():
    whole = list(itertools.islice(batches(), 20))
    assert list(itertools.islice(batches(start_step=13), 7)) == whole[13:]


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 3), (3, 2), (6, 1)])
def test_ranks_and_accumulation_share_the_same_global_steps(world_size, accumulate):
    for step in range(5):
        pieces = [
            list(
                itertools.islice(
                    batches(rank=rank, world_size=world_size, accumulate=accumulate, start_step=step), accumulate
                )
            )
            for rank in range(world_size)
        ]
        together = [start for piece in range(accumulate) for rank in range(world_size) for start in pieces[rank][piece]]
        assert together == batches().starts(step).tolist()


@settings(max_examples=40, deadline=None)
@given(
    share=st.integers(1, 3),
    accumulate=st.integers(1, 3),
    world_sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    num_chunks=st.integers(4, 90),
    seed=st.integers(0, 5),
)
def test_however_often_the_number_of_ranks_changes_an_epoch_has_every_sequence_once(
    share, accumulate, world_sizes, num_chunks, seed
):
    """Each step is taken by another number of ranks, as if the run were stopped and gone on with on other machines."""
    batch_size = share * accumulate * 12  # a multiple of 1, 2, 3 and 4 ranks
    options = {"num_chunks": num_chunks, "batch_size": batch_size, "seed": seed, "accumulate": accumulate}
    num_sequences = batches(**options).num_sequences
    seen = []
    for step in range(2 + num_sequences // batch_size):
        world_size = world_sizes[step % len(world_sizes)]
        ranks = [batches(**options, rank=r, world_size=world_size, start_step=step) for r in range(world_size)]
        pieces = [list(itertools.islice(rank, accumulate)) for rank in ranks]
        seen += [start for piece in zip(*pieces, strict=True) for of_rank in piece for start in of_rank]
    for epoch in range(len(seen) // num_sequences):
        of_epoch = seen[epoch * num_sequences : (epoch + 1) * num_sequences]
        assert len(set(of_epoch)) == num_sequences
    assert seen == [start for step in range(len(seen) // batch_size) for start in batches(**options).starts(step)]


def test_a_corpus_of_one_sequence_trains():
    assert batches(num_chunks=4).starts(9).tolist() == [0] * 6


def test_a_corpus_shorter_than_a_sequence_is_refused():
    with pytest.raises(CorpusError, match="data.sequence_chunks is 4, but the training split has 3 chunks"):
        batches(num_chunks=3)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(UsageError, match="multiple of 4"):
        batches(world_size=4)
