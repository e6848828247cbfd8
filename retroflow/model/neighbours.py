"""What the decoder reads: neighbours as text, then encoded, then projected for one layer.

`Retrieved` goes into the encoder, `Encoded` comes out of it and passes through the decoder's blocks, and each layer
of chunked cross-attention makes `ReadyNeighbours` of it.

Shapes: b batch, t tokens of a call, m tokens of a chunk, s tokens between two lookups, W windows, k neighbours,
r tokens of a neighbour, d decoder features, e encoder features, h heads, w features of one head, g groups of positions
that read the same neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn


@dataclass
class Retrieved:
    """The retrieved text of W windows.

    Attributes:
        tokens: int64 [b, W, k, r].
        mask: bool [b, W, k, r], True where a token was retrieved; None where all were.
    """

    tokens: Tensor
    mask: Tensor | None

    def windows(self, start: int, stop: int) -> "Retrieved":
        """The text of the windows start .. stop - 1."""
        part = slice(start, stop)
        return Retrieved(self.tokens[:, part], None if self.mask is None else self.mask[:, part])

    def without_empty_windows(self, chunk_mask: Tensor | None) -> "Retrieved":
        """Remove what was retrieved for windows that are padding alone; chunk_mask is bool [b, W, m]."""
        if chunk_mask is None:
            return self
        has_text = chunk_mask.any(-1)[:, :, None, None]
        mask = has_text if self.mask is None else self.mask & has_text
        return Retrieved(self.tokens, mask.expand(self.tokens.shape))


class ReadyNeighbours(NamedTuple):
    """The neighbours of g groups, projected for one CCA layer.

    Attributes:
        key: float [g, h, k * r, w].
        value: float [g, h, k * r, w].
        mask: bool [g, k * r], True where a retrieved token exists; None where all do.
        num_neighbours: k.
    """

    key: Tensor
    value: Tensor
    mask: Tensor | None
    num_neighbours: int

    def select(self, rows: Tensor) -> "ReadyNeighbours":
        """The groups int64 [c]."""
        mask = None if self.mask is None else self.mask[rows]
        return ReadyNeighbours(self.key[rows], self.value[rows], mask, self.num_neighbours)


# No tuple: FSDP would see the tensors in one, and gather every block that hands them on once more in the backward pass.
@dataclass
class Encoded:
    """The encoded neighbours of W windows.

    Attributes:
        states: float [b, W, k, r, e].
        mask: bool [b, W, k, r], True where a token was retrieved; None where all were.
        first: the first position of the call, from 0, that reads window 0; -p if it is p positions before the call.
        step: s, how many positions read the same window.
        hidden: float [b, t, d], the activations of the call's tokens that this was encoded given; empty between calls.
        ready: projections of a window that several calls read, by layer; None where the call is the only one.
    """

    states: Tensor
    mask: Tensor | None
    first: int
    step: int
    hidden: Tensor
    ready: dict[nn.Module, ReadyNeighbours] | None = None

    def newest(self) -> "Encoded | None":
        """The newest window as the next call sees it; None without any."""
        num_windows = self.states.shape[1]
        if not num_windows:
            return None
        first = self.first + (num_windows - 1) * self.step - self.hidden.shape[1]
        mask = None if self.mask is None else self.mask[:, -1:]
        ready = {} if self.ready is None else self.ready
        return replace(self, states=self.states[:, -1:], mask=mask, first=first, hidden=torch.empty(0), ready=ready)

    def select(self, rows: Tensor) -> "Encoded":
        """The rows int64 [c] of the batch."""
        mask = None if self.mask is None else self.mask[rows]
        ready = {layer: neighbours.select(rows) for layer, neighbours in (self.ready or {}).items()}
        return replace(self, states=self.states[rows], mask=mask, ready=ready)


def joined_windows(first: tuple[Encoded | None, int], second: tuple[Encoded | None, int]) -> Encoded | None:
    """Put the newest windows of two caches below each other.

    Args:
        first: a window with neighbours, or None, and the number of rows.
        second: the same of the other cache; its window, if there is one, has as many neighbours.
    """
    like = first[0] or second[0]
    if like is None:
        return None
    states, masks = [], []
    for window, num_rows in (first, second):
        shape = (num_rows, *like.states.shape[1:])
        states.append(like.states.new_zeros(shape) if window is None else window.states)
        there = torch.full(shape[:-1], window is not None, device=like.states.device)
        masks.append(there if window is None or window.mask is None else window.mask)
    return replace(like, states=torch.cat(states), mask=torch.cat(masks), ready={})


Encode = Callable[[Tensor], Encoded]
"""Encodes the neighbours of a call's windows given float [b, t, d], the activations that the first CCA layer reads with
(H of Algorithm 1)."""
