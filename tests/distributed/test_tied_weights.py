"""Weights with several names are known, and made the same in a model that has no weights."""

import torch
from torch import nn

from retroflow.distributed.tied_weights import share_as, shared_names


class Tied(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.middle = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        if tied:
            self.head.weight = self.table.weight


def test_names_of_one_weight_are_known():
    assert shared_names(Tied(True)) == [["table.weight", "head.weight"]]
    assert shared_names(Tied(False)) == []


def test_a_model_without_weights_is_tied_as_another_is():
    for here in (False, True):
        for there in (False, True):
            with torch.device("meta"):
                model = Tied(here)
            model.requires_grad_(False)
            share_as(model, shared_names(Tied(there)))
            assert shared_names(model) == shared_names(Tied(there))
            assert [name for name, _ in model.named_parameters()] == [
                name for name, _ in Tied(there).named_parameters()
            ]
            assert not model.head.weight.requires_grad and model.head.weight.shape == (5, 3)


def test_three_names_can_be_two_weights():
    model = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))
    model[1].weight = model[2].weight = model[0].weight
    share_as(model, [["0.weight", "2.weight"]])
    assert model[0].weight is model[2].weight and model[1].weight is not model[0].weight
