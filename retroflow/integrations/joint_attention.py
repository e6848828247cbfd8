"""Attention of a base that reads neighbours: one softmax over a position's own keys and those of its neighbours.

    o_i = softmax([q_i K_own[<= i], q_i K_neighbours[w(i)]] / sqrt(h)) [V_own, V_neighbours]

where w(i) is the newest window that has ended with position i (retroflow/model/windows.py). It is registered with
transformers as an attention function, which is one place for all families. A keyword argument that travels through
the base says what is read; without it the base computes what it always does.

Shapes: b batch, t tokens of a call, s own keys (those of a cache before the t), a heads, g heads of keys (a multiple of
g is a), h features of a head, W windows, k neighbours, r tokens of a neighbour.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from retroflow.integrations.neighbour_reader import ARGUMENT
from retroflow.integrations.neighbour_states import Capture
from retroflow.integrations.reading_maps import ReadingMaps

NAME = "retroflow_joint"
"""Of the attention function, in transformers."""


@dataclass(frozen=True)
class WindowNeighbours:
    """What the rows of a batch read from one window on.

    Attributes:
        start: the first position that reads it, from 0.
        rows: for each row the states of its neighbours, float [L, 2, g, up to r, h]; empty where nothing was looked up.
    """

    start: int
    rows: list[list[Tensor]]

    def select(self, rows: Tensor) -> "WindowNeighbours":
        """The rows int64 [c] of the batch."""
        return WindowNeighbours(self.start, [self.rows[row] for row in rows.tolist()] if self.rows else [])

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row reads."""
        return [sum(state.shape[3] for state in states) for states in self.rows]

    def keys_and_values(self, place: int) -> tuple[Tensor, Tensor]:
        """Of the reading layer at this place, float [b, g, longest, h] each; shorter rows end in zeros."""
        nothing = next(state for states in self.rows for state in states)[place, :, :, :0]
        longest, joined = max(self.lengths), []
        for states, length in zip(self.rows, self.lengths, strict=True):
            row = torch.cat([nothing, *(state[place] for state in states)], dim=2)  # [2, g, tokens, h]
            joined.append(F.pad(row, (0, 0, 0, longest - length)) if length < longest else row)
        keys, values = torch.stack(joined, dim=1)
        return keys, values


@dataclass(frozen=True)
class JointReading:
    """What the tokens of one call read.

    Attributes:
        layers: number of a reading layer, from 1 -> its place in the states.
        windows: that begin within these tokens, or have begun before them; in their order.
        first: position of the first token.
        maps: number of a reading layer -> its trained maps; empty where nothing is trained.
        question: float [b, a, t, h], what the maps add to the queries of a layer; None outside layers.
    """

    layers: dict[int, int]
    windows: Sequence[WindowNeighbours]
    first: int
    maps: Mapping[int, ReadingMaps] = field(default_factory=dict)
    question: Tensor | None = None
    _masks: dict[Any, Tensor | None] = field(default_factory=dict)

    @property
    def reads(self) -> bool:
        """Whether any token reads a neighbour."""
        return any(length for window in self.windows for length in window.lengths)

    def segments(self, num_tokens: int) -> list[tuple[int, int, WindowNeighbours | None]]:
        """Cut t tokens where another window begins: (first token, one past the last, its neighbours)."""
        starts = [max(0, window.start - self.first) for window in self.windows]
        pairs = zip(starts, [*starts[1:], num_tokens], self.windows, strict=True)
        cut: list[tuple[int, int, WindowNeighbours | None]] = [
            (start, min(stop, num_tokens), window if any(window.lengths) else None)
            for start, stop, window in pairs
            if start < min(stop, num_tokens)
        ]
        if not cut or cut[0][0]:
            cut.insert(0, (0, cut[0][0] if cut else num_tokens, None))
        return cut

    def mask(
        self, own: Tensor | None, part: slice, num_own: int, window: WindowNeighbours, query: Tensor
    ) -> Tensor | None:
        """Say which keys the tokens of a part see: bool [b, 1, tokens, own keys and neighbours']; None for all.

        Args:
            own: bool [b or 1, 1, t, s], the base's own; None for plain causality.
            part: of the t tokens.
            num_own: keys of the base that are given; the last is of the part's last token.
            window: that the part reads.
            query: float [b, a, t, h], for its device.
        """
        key = (part.start, None if own is None else id(own))  # of sliding and full layers they differ
        if key not in self._masks:
            length, lengths = part.stop - part.start, torch.tensor(window.lengths, device=query.device)
            seen = _own_mask(own, part, num_own, query).expand(len(lengths), -1, -1, -1)
            there = torch.arange(max(window.lengths), device=query.device) < lengths[:, None]
            made = torch.cat((seen, there[:, None, None].expand(-1, 1, length, -1)), dim=3)
            self._masks[key] = None if own is None and length == 1 and len(set(window.lengths)) == 1 else made
        return self._masks[key]


def attend_jointly(
    reading: JointReading,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> Tensor:
    """Attend to own keys and neighbours'; see the module's own words.

    Args:
        reading: what the tokens read.
        layer: number of the reading layer, from 1.
        query: float [b, a, t, h], positions in it.
        key: float [b, g, s, h], positions in it; the last t are of these tokens.
        value: float [b, g, s, h].
        own_mask: bool [b or 1, 1, t, s], True where an own key is seen; None for plain causality.
        dropout: of attention, in training.
        scaling: of the logits; None for 1 / sqrt(h).

    Returns:
        float [b, a, t, h].
    """
    length, before, outputs = query.shape[2], key.shape[2] - query.shape[2], []
    maps = reading.maps.get(layer)
    for start, stop, window in reading.segments(length):
        part, num_own = slice(start, stop), before + stop
        asking, keys, values = query[:, :, part], key[:, :, :num_own], value[:, :, :num_own]
        if window is None:
            mask: Tensor | None = _own_mask(own_mask, part, num_own, query)
            outputs.append(_attend(asking, keys, values, mask, dropout, scaling))
            continue
        mask = reading.mask(own_mask, part, num_own, window, query)
        theirs = window.keys_and_values(reading.layers[layer])
        if maps is None:
            keys, values = (torch.cat(pair, dim=2) for pair in zip((keys, values), theirs, strict=True))
            outputs.append(_attend(asking, keys, values, mask, dropout, scaling))
        else:
            question = None if reading.question is None else reading.question[:, :, part]
            own = (keys, values)
            outputs.append(maps.attend(asking, question, own, theirs, mask, dropout=dropout, scaling=scaling))
    return torch.cat(outputs, dim=2)


def attach_questions(attentions: Sequence[nn.Module]) -> None:
    """Let the attention modules of reading layers, changed in place, compute what their maps add to their queries.

    An attention function gets queries after rotation; only the module gets what they are made from.
    """
    for attention in attentions:
        attention.register_forward_pre_hook(_ask, with_kwargs=True)


def _ask(
    attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    reading = kwargs.get(ARGUMENT)
    if not isinstance(reading, JointReading):
        return None
    maps = reading.maps[int(attention.layer_idx) + 1]  # type: ignore[arg-type]
    question = maps.question(args[0] if args else kwargs["hidden_states"])
    return args, kwargs | {ARGUMENT: replace(reading, question=question)}


def _attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers asks every attention function to; returns float [b, t, a, h]."""
    passed = kwargs.pop(ARGUMENT, None)
    layer = int(module.layer_idx) + 1  # type: ignore[arg-type]
    if isinstance(passed, Capture):
        passed.take(layer, key, value)
    if isinstance(passed, JointReading) and layer in passed.layers:
        attended = attend_jointly(passed, layer, query, key, value, attention_mask, dropout=dropout, scaling=scaling)
        return attended.transpose(1, 2), None
    own: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return own


def _own_mask(own: Tensor | None, part: slice, num_own: int, query: Tensor) -> Tensor:
    if own is not None:
        return own[:, :, part, :num_own]
    keys = torch.arange(num_own, device=query.device)
    return (keys <= keys[num_own - (part.stop - part.start) :, None])[None, None]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scaling: float | None
) -> Tensor:
    """Attend with the fused kernel, the heads that share keys side by side as more queries; [b, a, t, h]."""
    num_rows, num_heads, length, width = query.shape
    shared = num_heads // key.shape[1]
    if shared > 1:
        query = query.reshape(num_rows, key.shape[1], shared * length, width)
        mask = None if mask is None else mask.repeat(1, 1, shared, 1)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return attended.reshape(num_rows, num_heads, length, width)


AttentionInterface.register(NAME, _attention_function)
AttentionMaskInterface.register(NAME, sdpa_mask)
