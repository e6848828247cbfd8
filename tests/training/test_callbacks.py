"""Dropout's seed is a function of (seed, batch, rank) and of nothing that happened before."""

import itertools
from types import SimpleNamespace

import torch

from retroflow.training.callbacks import SeedEachBatch


def drawn(seed, batch, rank):
    trainer = SimpleNamespace(global_rank=rank)
    SeedEachBatch(seed).on_train_batch_start(trainer, None, None, batch)
    return tuple(torch.rand(4).tolist())


def test_dropout_is_a_pure_function_of_seed_batch_and_rank():
    places = list(itertools.product((0, 1, 11), (0, 1, 12), (0, 1, 2)))
    first = {place: drawn(*place) for place in places}
    torch.rand(1000)
    assert {place: drawn(*place) for place in reversed(places)} == first
    assert len(set(first.values())) == len(places)
