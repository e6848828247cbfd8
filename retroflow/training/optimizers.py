"""AdamW with decay groups, and the learning rate as a function of the step alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from retroflow.planning.options import OptimizerOptions
from retroflow.planning.schedule import schedule_share


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split trainable parameters into decayed matrices and undecayed rest (embeddings, gains, biases, scales).

    A parameter is a matrix if at least two of its axes are longer than 1: a scale per head, stored as [h, 1, 1] to
    broadcast, is not one.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    # By what they are: a base of another library has names of its own for its embeddings.
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    embeddings = {id(parameter) for table in tables for parameter in table.parameters()}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = sum(size > 1 for size in parameter.shape) >= 2
        (decayed if is_matrix and id(parameter) not in embeddings else kept).append(parameter)
    groups: list[dict[str, object]] = [{"params": decayed, "weight_decay": weight_decay}]
    return [*groups, {"params": kept, "weight_decay": 0.0}]


def by_name(state: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Give an optimizer's state the names of its parameters instead of their numbers.

    Numbers follow the order of groups, names hold under every strategy.

    Args:
        state: an optimizer's `state_dict()`.
        names: of its parameters, in its order.
    """
    return _renamed(state, dict(enumerate(names)))


def by_number(state: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The reverse of `by_name`."""
    return _renamed(state, {name: number for number, name in enumerate(names)})


def _renamed(state: dict[str, Any], new: Mapping[Any, Any]) -> dict[str, Any]:
    groups = [{**group, "params": [new[old] for old in group["params"]]} for group in state["param_groups"]]
    return {"state": {new[old]: values for old, values in state["state"].items()}, "param_groups": groups}


def parameter_names(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names in `module` of an optimizer's parameters, in its order."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def make_optimizer(model: nn.Module, options: OptimizerOptions) -> torch.optim.AdamW:
    """Make the fused AdamW (on CPU 2.7 times faster than the loop and 4 times than foreach, 13M parameters)."""
    return torch.optim.AdamW(
        decay_groups(model, options.weight_decay),
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        fused=True,
    )


def make_schedule(optimizer: torch.optim.Optimizer, options: OptimizerOptions, *, max_steps: int) -> LambdaLR:
    """Make the schedule that multiplies the learning rate by `schedule_share` at every optimizer step."""
    return LambdaLR(
        optimizer,
        lambda step: schedule_share(
            step, warmup_steps=options.warmup_steps, max_steps=max_steps, final_share=options.final_share
        ),
    )
