"""Weights with several names, such as input and output embeddings that a model ties."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn


def shared_names(model: nn.Module) -> list[list[str]]:
    """The names of every parameter that has more than one, each list in the order of the model's parameters."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def share_as(model: nn.Module, groups: Iterable[Sequence[str]]) -> None:
    """Let the names of each group be one parameter, and all other names one each.

    Whether weights are really tied is known once they are loaded: a checkpoint may hold two different matrices for what
    the configuration ties. A model on the meta device has to be told.

    Args:
        model: changed in place.
        groups: as `shared_names` gives them for a model of the same names.
    """
    first = {name: group[0] for group in groups for name in group}
    placed: dict[str, nn.Parameter] = {}
    used: set[int] = set()
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        source = first.get(name, name)
        if source in placed:
            parameter = placed[source]
        elif id(parameter) in used:
            parameter = nn.Parameter(torch.empty_like(parameter), requires_grad=parameter.requires_grad)
        placed[name] = parameter
        used.add(id(parameter))
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, parameter)
