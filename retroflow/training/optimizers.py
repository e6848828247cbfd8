"""AdamW with decay groups, and the learning rate as a function of the step alone."""

from itertools import zip_longest
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from retroflow.errors import DamagedDataError
from retroflow.planning.options import OptimizerOptions
from retroflow.planning.schedule import learning_rate_factor


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Divide trainable parameters into decayed matrices and the undecayed rest (embeddings, gains, biases, scales).

    A parameter is a matrix if at least two of its axes are longer than 1: a scale per head, stored as [h, 1, 1] to
    broadcast, is not one.
    """
    decayed: list[tuple[str, nn.Parameter]] = []
    kept: list[tuple[str, nn.Parameter]] = []
    # By type: a base of another library may call its embeddings differently.
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    embeddings = {id(parameter) for table in tables for parameter in table.parameters()}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = sum(size > 1 for size in parameter.shape) >= 2
        (decayed if is_matrix and id(parameter) not in embeddings else kept).append((name, parameter))
    groups: list[dict[str, object]] = [{"params": decayed, "weight_decay": weight_decay}]
    groups.append({"params": kept, "weight_decay": 0.0})
    # torch takes an empty group for one without names; a model that trains nothing has no other.
    return [group for group in groups if group["params"]] or groups


def make_optimizer(model: nn.Module, options: OptimizerOptions) -> torch.optim.AdamW:
    """Make the fused AdamW (on CPU 2.7 times faster than the loop and 4 times than foreach, 13M parameters).

    Its state dict holds states in the order of the parameters, which is the same under every strategy, and beside them
    the parameters' names. `load_state_dict` raises DamagedDataError if the names differ.
    """
    optimizer = torch.optim.AdamW(
        decay_groups(model, options.weight_decay),
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        fused=True,
    )
    optimizer.register_load_state_dict_pre_hook(_refuse_other_parameters)
    return optimizer


def _refuse_other_parameters(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    stored, own = (
        [name for group in groups for name in group.get("param_names", ["no name"])]
        for groups in (state["param_groups"], optimizer.param_groups)
    )
    for there, here in zip_longest(stored, own, fillvalue="nothing"):
        if there != here:
            raise DamagedDataError(
                f"the optimizer's states in the checkpoint do not fit the model: {there} there, {here} here. Start a "
                "new run."
            )


def make_schedule(optimizer: torch.optim.Optimizer, options: OptimizerOptions, *, max_steps: int) -> LambdaLR:
    """Make the schedule that multiplies the learning rate by `learning_rate_factor` at every optimizer step."""
    return LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(
            step, warmup_steps=options.warmup_steps, max_steps=max_steps, final_share=options.final_share
        ),
    )
