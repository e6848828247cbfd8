"""Decay groups and the learning rate."""

import math

import pytest
import torch
from torch import nn

from retroflow.planning.options import OptimizerOptions
from retroflow.planning.schedule import schedule_share
from retroflow.training.optimizers import (
    by_name,
    by_number,
    decay_groups,
    make_optimizer,
    make_schedule,
    parameter_names,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.linear = nn.Linear(3, 5)
        self.norm = nn.RMSNorm(3)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)


def test_matrices_are_decayed_and_embeddings_gains_biases_and_scales_are_not():
    net = Net()
    decayed, kept = decay_groups(net, 0.1)
    assert decayed["weight_decay"] == 0.1 and kept["weight_decay"] == 0.0
    assert [id(p) for p in decayed["params"]] == [id(net.linear.weight)]
    assert {id(p) for p in kept["params"]} == {
        id(p) for p in (net.embedding.weight, net.linear.bias, net.norm.weight, net.scale)
    }


def test_the_optimizer_takes_every_option():
    options = OptimizerOptions(learning_rate=0.5, beta1=0.1, beta2=0.2, epsilon=0.3, weight_decay=0.4)
    group = make_optimizer(Net(), options).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"], group["fused"]) == (
        0.5,
        (0.1, 0.2),
        0.3,
        0.4,
        True,
    )


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (0, 0.1),
        (4, 0.5),
        (9, 1.0),
        (10, 1.0),
        (60, 0.55),
        (110, 0.1),
        (500, 0.1),
        (35, 0.1 + 0.45 * (1 + math.sqrt(0.5))),
    ],
)
def test_the_schedule_is_a_line_and_a_cosine(step, share):
    assert schedule_share(step, warmup_steps=10, max_steps=110, final_share=0.1) == pytest.approx(share)


def test_the_schedule_without_warm_up_begins_at_the_top():
    assert schedule_share(0, warmup_steps=0, max_steps=1, final_share=0.0) == 1.0


def test_the_optimizer_follows_the_schedule():
    options = OptimizerOptions(learning_rate=2.0, warmup_steps=2, final_share=0.5)
    optimizer = make_optimizer(Net(), options)
    schedule = make_schedule(optimizer, options, max_steps=4)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1.5, 1.0])


def test_states_are_named_by_parameter_and_numbered_again():
    net = Net()
    optimizer = make_optimizer(net, OptimizerOptions())
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, float(parameter.numel()))
    optimizer.step()
    names, state = parameter_names(net, optimizer), optimizer.state_dict()
    named = by_name(state, names)
    assert names[0] == "linear.weight" and "frozen" not in names
    assert named["param_groups"][0]["params"] == ["linear.weight"]
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(named["state"][name]["exp_avg"], optimizer.state[parameter]["exp_avg"])
    again = by_number(named, names)
    assert again["param_groups"] == state["param_groups"] and again["state"].keys() == state["state"].keys()
