"""How much attention each retrieved token gets, for the inspector.

A model that reads by inheritance has one softmax over a position's own text and its neighbours, so the weights of
neighbours add up to less than 1. Chunked cross-attention has a softmax over neighbours alone, which add up to 1. Both
are averaged over all heads of all layers that read.

Shapes: n tokens of a sequence, m of a chunk, W windows, k neighbours, r tokens of a neighbour, J neighbours that a
position reads, t tokens of a part.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retroflow.data import Batch
from retroflow.model.chunked_cross_attention import ChunkedCrossAttention
from retroflow.pretrained.inherited_reader import InheritedReader
from retroflow.pretrained.retrofit import RetrofitModel

Place = tuple[int, int]
"""A window, and the place of one of its neighbours."""


@dataclass
class Attention:
    """Attention of one sequence to its neighbours.

    Attributes:
        averaged: over what the weights are averaged; empty of a model that shows none.
        adds_up_to_one: whether a position attends to nothing but neighbours.
        read: for each window the neighbours that are read from its end on, those of earlier windows first.
        weights: position -> float32 [J, r], in the order of `read`; positions without neighbours are left out.
    """

    averaged: str = ""
    adds_up_to_one: bool = False
    read: list[list[Place]] = field(default_factory=list)
    weights: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def set(self, first: int, weights: NDArray[np.float32]) -> None:
        """Set the weights float32 [t, J, r] of positions `first` on."""
        self.weights |= dict(enumerate(weights, start=first))


@contextmanager
def watched(model: Any, batch: Batch, step: int) -> Iterator[Attention]:
    """Collect the attention of a model's next call.

    Args:
        model: a `RetrievalModel`; one that is not ours shows nothing.
        batch: one sequence, which the call gets.
        step: tokens between two lookups, in the call.
    """
    found = Attention()
    if batch.retrieved_mask is None or not batch.retrieved_mask.any():
        watching: AbstractContextManager[None] = nullcontext()
    elif isinstance(model, RetrofitModel) and isinstance(model.retrieval, InheritedReader):
        watching = _watched_joint(model.retrieval, batch, step, found)
    else:
        watching = _watched_cross(model, batch, step, found)
    with watching:
        yield found


@contextmanager
def _watched_joint(reader: InheritedReader, batch: Batch, step: int, found: Attention) -> Iterator[None]:
    assert batch.retrieved is not None and batch.retrieved_mask is not None
    tokens, mask = batch.retrieved[0].cpu().numpy(), batch.retrieved_mask[0].cpu().numpy()  # [W, k, r]
    chunk_length, layers = tokens.shape[2] // 2, reader.num_layers
    found.averaged = f"all heads of the {layers} layers that read"
    unions = [_union(tokens, mask, window, reader.lookups_read) for window in range(len(tokens))]
    found.read = [list(union.values()) for union in unions]
    sums: dict[int, NDArray[np.float32]] = {}

    def watch(part: slice, own: int, query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> None:
        with torch.autocast(query.device.type, enabled=False):  # heads that share keys are side by side, as in reading
            logits = query.reshape(1, key.shape[1], -1, query.shape[3]).float() @ key.float().mT * scale
        weights = (logits if mask is None else logits + mask).softmax(-1)[..., own:]
        of_heads = weights.reshape(-1, query.shape[2], weights.shape[3])
        mean = (of_heads.mean(0) / layers).float().cpu().numpy()  # [t, tokens]
        sums[part.start] = sums[part.start] + mean if part.start in sums else mean

    reader.watch = watch
    try:
        yield
    finally:
        reader.watch = None
    for first, weights in sums.items():
        places = found.read[(first + 1 - chunk_length) // step]
        spread = np.zeros((len(weights), len(places), tokens.shape[2]), dtype=np.float32)
        spread[:, np.stack([mask[place] for place in places])] = weights
        found.set(first, spread)


def _union(
    tokens: NDArray[np.int64], mask: NDArray[np.bool_], window: int, lookups_read: int
) -> dict[tuple[Any, ...], Place]:
    """The texts that are read from a window's end on, in the reader's order: a text of two lookups stands once."""
    union: dict[tuple[Any, ...], Place] = {}
    for earlier in range(max(0, window + 1 - lookups_read), window + 1):
        for place in range(tokens.shape[1]):
            real = mask[earlier, place]
            if real.any():
                text = (*tokens[earlier, place][real].tolist(), *real.nonzero()[0].tolist())
                union.setdefault(text, (earlier, place))
    return union


@contextmanager
def _watched_cross(model: Any, batch: Batch, step: int, found: Attention) -> Iterator[None]:
    assert batch.retrieved is not None and batch.retrieved_mask is not None
    mask = batch.retrieved_mask[0].cpu().numpy()  # [W, k, r]
    readers = [each for each in model.modules() if isinstance(each, ChunkedCrossAttention)]
    if not readers:
        yield
        return
    k, r, length = mask.shape[1], mask.shape[2], batch.tokens.shape[1]
    found.averaged = f"all heads of the {len(readers)} layers with chunked cross-attention"
    found.adds_up_to_one = True
    found.read = [[(window, place) for place in range(k)] for window in range(len(mask))]

    sums: dict[int, NDArray[np.float32]] = {}

    def watch(attend: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        mean = attend.weights(*args[:2], **kwargs).mean(1) / len(readers)  # [W, t, k * r], or k * (r - 1)
        for window in np.flatnonzero(mask.any(axis=(1, 2))).tolist():
            of_window = mean[window].cpu().numpy()
            sums[window] = sums[window] + of_window if window in sums else of_window

    hooks = [reader.attend.register_forward_pre_hook(watch, with_kwargs=True) for reader in readers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    for window, weights in sums.items():
        first = r // 2 - 1 + window * step
        spread = weights[: length - first].reshape(-1, k, weights.shape[1] // k)
        # Where a token is asked for the one after it, a weight belongs to the token whose value it takes.
        found.set(first, np.pad(spread, ((0, 0), (0, 0), (r - spread.shape[2], 0))))
