"""The states of a model's layers, as transformers' `output_hidden_states` returns them.

Shapes: b batch, t tokens of a call, L layers, d features.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.utils.output_capturing import selected_hidden_states

from retroflow.errors import UsageError
from retroflow.model.retro import Retro
from retroflow.pretrained.retrofit import RetrofitModel
from retroflow.protocols import RetrievalModel

LayerStates = tuple[Tensor, ...]
"""L + 1 states, float [b, t, d]: the embeddings, and what each layer returns; the last one is normalised."""


@contextmanager
def watching(model: RetrievalModel) -> Iterator[list[LayerStates]]:
    """Collect the states of the layers while this thread runs a model; neighbours' own states are not among them.

    Yields:
        A list that is empty at first: a cached model runs a text in parts, and each part adds its states.

    Raises:
        UsageError: a plugin's model, whose layers are not known.
    """
    thread, parts = threading.get_ident(), list[LayerStates]()

    def keep(states: LayerStates) -> None:
        if threading.get_ident() == thread:
            parts.append(states)

    if isinstance(model, RetrofitModel):
        with model.running() as base:
            hooks = _hooks_of_base(base, keep)
    elif isinstance(model, Retro):
        hooks = _hooks_of_retro(model, keep)
    else:
        raise UsageError(
            f"output_hidden_states: True given; the layers of a {type(model).__name__} are not known. Leave it out."
        )
    try:
        yield parts
    finally:
        for hook in hooks:
            hook.remove()


def joined(parts: list[LayerStates], num_tokens: int, which: bool | int | list[int]) -> tuple[Any, ...]:
    """Join the states of the parts of a text.

    Args:
        parts: from `watching`.
        num_tokens: of how many last tokens.
        which: True for all L + 1, or places among them; then the others are None.
    """
    states = parts[0]
    if len(parts) > 1 or states[0].shape[1] != num_tokens:  # else those that gradients pass through
        states = tuple(torch.cat(layer, dim=1)[:, -num_tokens:] for layer in zip(*parts, strict=True))
    places = selected_hidden_states(which)
    if places is None:
        return states
    chosen = {place % len(states) for place in places if -len(states) <= place < len(states)}
    return tuple(state if place in chosen else None for place, state in enumerate(states))


def _hooks_of_base(base: nn.Module, keep: Any) -> list[RemovableHandle]:
    def ask(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs | {"output_hidden_states": True}

    return [
        base.register_forward_pre_hook(ask, with_kwargs=True),
        base.register_forward_hook(lambda _, __, output: keep(output.hidden_states)),
    ]


def _hooks_of_retro(model: Retro, keep: Any) -> list[RemovableHandle]:
    states = threading.local()  # of the part that runs

    def begin(_: nn.Module, args: tuple[Any, ...]) -> None:
        states.so_far = [args[0]]

    def add(_: nn.Module, __: Any, output: tuple[Tensor, Any]) -> None:
        states.so_far.append(output[0])

    def end(_: nn.Module, __: Any, normalised: Tensor) -> None:
        keep((*states.so_far[:-1], normalised))

    return [
        model.blocks[0].register_forward_pre_hook(begin),
        *(block.register_forward_hook(add) for block in model.blocks),
        model.norm.register_forward_hook(end),
    ]
