"""The baselines do what their names say."""

import numpy as np
import pytest
import torch

from retroflow.data.windows import WindowTable
from retroflow.evaluation.attribution import (
    at_random,
    continuation_only,
    neighbour_only,
    random_windows,
    share_without_neighbours,
    shuffled,
    shuffled_windows,
)
from retroflow.evaluation.measuring import token_losses
from tests.evaluation.test_prompted import PLACE, batch_of, make_model, make_texts


@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_shuffled_gives_every_chunk_anothers_neighbours_and_loses_none(count):
    neighbours = np.arange(2 * count).reshape(count, 2)
    found = shuffled(neighbours, seed=4)
    assert (found[:, 0] != neighbours[:, 0]).all()
    assert sorted(found[:, 0].tolist()) == neighbours[:, 0].tolist()
    assert (found[:, 1] == found[:, 0] + 1).all()


def test_shuffled_is_fixed_by_its_seed():
    neighbours = np.arange(40).reshape(20, 2)
    assert (shuffled(neighbours, seed=1) == shuffled(neighbours, seed=1)).all()
    assert (shuffled(neighbours, seed=1) != shuffled(neighbours, seed=2)).any()


def test_a_single_chunk_has_no_other():
    assert shuffled(np.array([[3, 4]]), seed=0).tolist() == [[-1, -1]]


def test_random_rows_cover_the_database():
    found = at_random(np.zeros((500, 2)), database_chunks=7, seed=0)
    assert set(found.ravel().tolist()) == set(range(7)) and found.dtype == np.int64


def test_random_neighbours_are_read_only_where_something_was_found():
    found = np.array([[3, -1], [-1, -1], [2, 5]])
    assert ((at_random(found, database_chunks=7, seed=0) < 0) == (found < 0)).all()


def test_windows_are_shuffled_by_sequence_and_a_single_sequence_has_no_other():
    table = WindowTable(np.arange(6), np.arange(6 * 5 * 2).reshape(6, 5, 2), step=2)
    found = shuffled_windows(table, seed=3).ids
    assert (found != table.ids).all() and sorted(found.ravel().tolist()) == list(range(60))
    assert (np.diff(found.reshape(6, 10), axis=1) == 1).all()
    assert (shuffled_windows(WindowTable(np.arange(1), table.ids[:1], 2), seed=3).ids == -1).all()


def test_random_windows_have_as_many_different_chunks_for_as_long():
    ids = np.array([[[4, 7], [4, -1], [7, 9]], [[4, 4], [1, 2], [3, 5]]])
    found = random_windows(WindowTable(np.arange(2), ids, 2), database_chunks=10**6, seed=0).ids
    assert found[0, 0, 0] == found[0, 1, 0] != found[1, 0, 0] and found[0, 1, 1] == -1
    assert all(len(np.unique(found[row])) == len(np.unique(ids[row])) for row in (0, 1))


def test_share_without_neighbours_counts_chunks_that_got_none():
    assert share_without_neighbours(np.array([[-1, -1], [3, -1], [1, 2], [-1, -1]])) == 0.5


def test_neighbours_and_continuations_alone_are_the_halves_of_what_was_found():
    texts, retrieved, mask = make_texts(2, 20, 5, 3)
    batch = batch_of(texts, retrieved, mask)
    first, second = neighbour_only(batch), continuation_only(batch)
    assert torch.equal(first.retrieved_mask | second.retrieved_mask, mask)
    assert not first.retrieved_mask[..., 4:].any() and not second.retrieved_mask[..., :4].any()
    losses = token_losses(make_model(), PLACE)
    ways = [losses(each) for each in (batch, first, second, batch.without_retrieval())]
    assert all((ways[one] - ways[other]).abs().max() > 1e-3 for one in range(4) for other in range(one))
    changed = batch._replace(retrieved=torch.where(torch.arange(8) < 4, retrieved, 0))
    assert torch.equal(losses(neighbour_only(changed)), ways[1])
