"""Weights with several names, such as tied input and output embeddings."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn


def shared_names(model: nn.Module) -> list[list[str]]:
    """Return the names of every parameter with more than one, in the order of the model's parameters."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def share_as(model: nn.Module, groups: Iterable[Sequence[str]]) -> None:
    """Make the names of each group one parameter, and every other name a separate one.

    Whether weights are really tied is known once they are loaded: a checkpoint may hold two different matrices for what
    the configuration ties. A model on the meta device cannot know.

    Args:
        model: changed in place.
        groups: from `shared_names` for a model with the same names.
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
