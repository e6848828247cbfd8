"""The parts that a RETRO-fit adds to its base: encoder and chunked cross-attention, called by hooks.

The base keeps its own code. Its forward method passes unknown keyword arguments to every attention module, including
one of ours. Hooks on the chosen layers find it there and add chunked cross-attention to the output of self-attention:

    h = x + ATTN(x)            becomes       h = x + (ATTN(x) + CCA(x + ATTN(x), E))

Without that argument the hooks do nothing. It holds everything about a call, encoded neighbours included, since layers
of a base return no values of ours; no module holds state between calls.

Shapes: b batch, t tokens, d features of the base, e encoder features, v vocabulary; windows as in
retroflow/model/windows.py.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from retroflow.model.acceleration import accelerate
from retroflow.model.chunked_cross_attention import ChunkedCrossAttention
from retroflow.model.config import RetroConfig
from retroflow.model.encoder import RetrievedEncoder
from retroflow.model.initialisation import initialise
from retroflow.model.layers import RMSNorm, Smear
from retroflow.model.neighbours import Encode, Encoded

ARGUMENT = "retroflow_call"
"""The keyword argument that is passed through the base."""


class NeighbourReader(nn.Module):
    """Chunked cross-attention for one layer of a base, zero at step 0.

    Args:
        config: of the new parts.
    """

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        self.cca_norm = RMSNorm(config.width)
        self.cca = ChunkedCrossAttention(config)
        self.token_norm = RMSNorm(config.width) if config.smear else None
        self.gate = nn.Parameter(torch.zeros(config.width)) if config.copy_initialisation else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, encoded: Encoded, token_query: Tensor | None) -> Tensor:
        """Compute the residual update.

        Args:
            x: float [b, t, d], the base's activations after self-attention.
            encoded: the neighbours.
            token_query: float [b, t, d], the smeared embeddings of the positions' own tokens; None without smear.

        Returns:
            float [b, t, d].
        """
        query = self.cca_norm(x)
        if self.token_norm is not None and token_query is not None:
            query = query + self.token_norm(token_query)
        update = self.cca(query, encoded)
        if self.gate is not None:
            update = update * self.gate
        dropped: Tensor = self.dropout(update)
        return dropped


class RetrievalParts(nn.Module):
    """All weights that a RETRO-fit adds to its base.

    Args:
        config: of the new parts, for the width, depth and vocabulary of the base.
    """

    def __init__(self, config: RetroConfig) -> None:
        super().__init__()
        self.encoder = RetrievedEncoder(config)
        self.smear = Smear(config.width) if config.smear else None
        self.readers = nn.ModuleDict({str(layer): NeighbourReader(config) for layer in config.cca_layers})
        self.first_layer = min(config.cca_layers)
        initialise(self, config)
        self._close(config)
        accelerate(self)

    @torch.no_grad()
    def _close(self, config: RetroConfig) -> None:
        """Make the output of every reader zero: by its gate if it starts as a copier, else by its output matrix."""
        for reader in self.readers.values():
            assert isinstance(reader, NeighbourReader)
            if reader.gate is None:
                reader.cca.output.weight.zero_()
            elif reader.token_norm is not None:
                # A copier matches tokens; the contribution of the base's activations to the query is learned from zero.
                reader.cca_norm.weight.zero_()


@dataclass
class Call:
    """The data of one call of a RETRO-fit, passed through the base.

    Attributes:
        parts: the weights.
        encode: encodes the neighbours.
        token_query: float [b, t, d], smeared embeddings of the call's tokens; None without smear.
        encoded: the neighbours; None before the first layer with CCA.
    """

    parts: RetrievalParts
    encode: Encode
    token_query: Tensor | None = None
    encoded: Encoded | None = None


@dataclass(frozen=True)
class CallInLayer:
    """A call inside a layer with CCA.

    Attributes:
        call: the call.
        number: of the layer, from 1.
        x: float [b, t, d], its input.
    """

    call: Call
    number: int
    x: Tensor

    def update(self, attended: Tensor) -> Tensor:
        """Return CCA's update from a layer's self-attention output float [b, t, d], with the same shape and dtype."""
        call, hidden = self.call, self.x + attended
        encoded = call.encoded
        if encoded is None or self.number == call.parts.first_layer:
            encoded = call.encode(hidden)
        if call.encoded is None:  # activation checkpointing calls a layer twice
            call.encoded = encoded
        update: Tensor = call.parts.readers[str(self.number)](hidden, encoded, call.token_query)
        return update.to(attended.dtype)


def attach(layers: list[nn.Module], attention: str, numbers: tuple[int, ...]) -> None:
    """Add hooks to these layers (numbered from 1) of a base, so that they read neighbours if a `Call` is passed.

    Args:
        layers: of the base, changed in place.
        attention: attribute of a layer with its self-attention.
        numbers: which layers.
    """
    for number in numbers:
        layer = layers[number - 1]
        layer.register_forward_pre_hook(partial(_enter_layer, number), with_kwargs=True)
        layer.get_submodule(attention).register_forward_hook(_after_attention, with_kwargs=True)


def _enter_layer(
    number: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    call: Call | None = kwargs.get(ARGUMENT)
    if call is None:
        return None
    x = args[0] if args else kwargs["hidden_states"]
    return args, kwargs | {ARGUMENT: CallInLayer(call, number, x)}


def _after_attention(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    call = kwargs.get(ARGUMENT)
    if not isinstance(call, CallInLayer):
        return None
    if isinstance(output, tuple):
        return (output[0] + call.update(output[0]), *output[1:])
    return output + call.update(output)
