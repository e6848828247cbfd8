"""Decay groups and the learning rate."""

import math

import pytest
import torch
from torch import nn

from retroflow.errors import DamagedDataError
from retroflow.planning.options import OptimizerOptions
from retroflow.planning.schedule import learning_rate_factor
from retroflow.training.optimizers import decay_groups, make_optimizer, make_schedule


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.linear = nn.Linear(3, 5)
        self.norm = nn.RMSNorm(3)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)


def test_matrices_are_decayed_and_embeddings_gains_biases_and_scales_are_not():
    decayed, kept = decay_groups(Net(), 0.1)
    assert decayed["weight_decay"] == 0.1 and kept["weight_decay"] == 0.0
    assert [name for name, _ in decayed["params"]] == ["linear.weight"]
    assert {name for name, _ in kept["params"]} == {"embedding.weight", "linear.bias", "norm.weight", "scale"}


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
    assert learning_rate_factor(step, warmup_steps=10, max_steps=110, final_share=0.1) == pytest.approx(share)


def test_the_schedule_without_warm_up_begins_at_the_top():
    assert learning_rate_factor(0, warmup_steps=0, max_steps=1, final_share=0.0) == 1.0


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


def stepped():
    net = Net()
    optimizer = make_optimizer(net, OptimizerOptions())
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, float(parameter.numel()))
    optimizer.step()
    return net, optimizer


def test_states_are_stored_with_the_names_of_their_parameters_and_loaded_again():
    net, optimizer = stepped()
    state = optimizer.state_dict()
    named = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    stored = [name for group in state["param_groups"] for name in group["param_names"]]
    assert stored[0] == "linear.weight" and sorted(stored) == sorted(named)
    _, again = stepped()
    again.load_state_dict(state)
    for number, name in enumerate(stored):
        assert torch.equal(state["state"][number]["exp_avg"], optimizer.state[named[name]]["exp_avg"])
    assert again.state_dict()["param_groups"] == state["param_groups"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["linear.bias"], "linear.bias there, linear.weight here"),
        (["linear.weight", "more.weight"], "more.weight there, scale here"),
        (None, "no name there, linear.weight here"),
    ],
)
def test_states_of_other_parameters_are_refused(names, words):
    _, optimizer = stepped()
    state = optimizer.state_dict()
    state["param_groups"][0]["param_names"] = names
    if names is None:
        del state["param_groups"][0]["param_names"]
    with pytest.raises(DamagedDataError, match=rf"do not fit the model: {words}\. Start a new run"):
        optimizer.load_state_dict(state)
