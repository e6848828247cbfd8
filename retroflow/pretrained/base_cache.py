"""What a RETRO-fit keeps between calls of generation, and how its base is told of padding.

Shapes: b batch, t new tokens, L reading layers, g heads of keys, r tokens of a neighbour, h features of a head.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from retroflow.model.attention import at_the_right
from retroflow.model.cache import RetroCache
from retroflow.model.neighbours import Encoded
from retroflow.pretrained.neighbour_states import Text

_ROOM = 64
"""Own keys that are appended before what is joined is copied again."""


class Neighbour(NamedTuple):
    """A neighbour as a base reads it.

    Attributes:
        states: float [L, 2, g, up to r, h].
        offset: added to its logits.
    """

    states: Tensor
    offset: float


@dataclass(frozen=True)
class Lookup:
    """What was found when a window ended, as a base reads it.

    Attributes:
        start: the first position that reads it, from 0.
        rows: for each row of a batch its neighbours, by their texts.
    """

    start: int
    rows: Sequence[dict[Text, Neighbour]]

    def select(self, rows: Tensor) -> "Lookup":
        """The rows int64 [c] of the batch."""
        return Lookup(self.start, [self.rows[row] for row in rows.tolist()])


@dataclass
class Joined:
    """Keys and values that several calls read, side by side: those of neighbours, then own ones, then room.

    Attributes:
        past: whose own ones they are; None before there are any.
        buffers: place of a reading layer -> float [2, b, g, longest + own + room, h].
        num_own: place -> own ones in its buffer.
    """

    past: DynamicCache | None = None
    buffers: dict[int, Tensor] = field(default_factory=dict)
    num_own: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class WindowNeighbours:
    """What the rows of a batch read from one window on.

    Attributes:
        start: the first position that reads it, from 0.
        rows: for each row its neighbours; empty where nothing was looked up.
        joined: what is kept for windows that several calls read; None keeps nothing.
    """

    start: int
    rows: list[list[Neighbour]]
    joined: Joined | None = None

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens that each row reads."""
        return [sum(each.states.shape[3] for each in row) for row in self.rows]

    @cached_property
    def offsets(self) -> Tensor | None:
        """What is added to logits, float64 [rows, longest], one row if all are equal; None for nothing."""
        if not any(each.offset for row in self.rows for each in row):
            return None
        offsets = torch.zeros(len(self.rows), max(self.lengths), dtype=torch.float64)
        for row, neighbours in enumerate(self.rows):
            end = 0
            for states, offset in neighbours:
                start, end = end, end + states.shape[3]
                offsets[row, start:end] = offset
        return offsets[:1] if (offsets == offsets[0]).all() else offsets

    def keys_and_values(self, place: int) -> tuple[Tensor, Tensor]:
        """Of the reading layer at this place, float [b, g, longest, h] each; shorter rows end in zeros."""
        buffer = None if self.joined is None else self.joined.buffers.get(place)
        if buffer is None:
            buffer = self._side_by_side(place, 0)
            if self.joined is not None:
                self.joined.buffers[place] = buffer
        keys, values = buffer[:, :, :, : max(self.lengths)]
        return keys, values

    @cached_property
    def _unkept(self) -> "WindowNeighbours":
        return replace(self, joined=None)

    def joining(self, is_single: bool, follows: bool) -> "WindowNeighbours | None":
        """Return what writes own keys behind neighbours' (`before_own`); None if both are to be copied side by side.

        Args:
            is_single: whether a single token reads.
            follows: whether it reads all own keys from the first on.
        """
        if is_single:
            return self if self.joined is not None and follows else None
        # With gradients every write into a copy would copy it.
        return None if torch.is_grad_enabled() else self._unkept

    def before_own(self, place: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of the reading layer at this place, with own keys and values behind them; to what is kept new ones are added.

        Args:
            place: of the layer.
            keys: float [b, g, s, h], own ones; where a window keeps what is joined, all but the last are those of the
                call before, unless that had several.
            values: likewise.

        Returns:
            float [b, g, longest + s, h] each.
        """
        longest, count = max(self.lengths), keys.shape[2]
        kept = Joined() if self.joined is None else self.joined
        buffer = kept.buffers.get(place)
        if buffer is None or buffer.shape[3] < longest + count:
            buffer = self._side_by_side(place, count + (0 if self.joined is None else _ROOM))
            kept.buffers[place] = buffer
            kept.num_own[place] = 0
        first = count - 1 if kept.num_own.get(place) == count - 1 else 0
        for part, own in zip(buffer, (keys, values), strict=True):
            part[:, :, longest + first : longest + count] = own[:, :, first:]
        kept.num_own[place] = count
        joined_keys, joined_values = buffer[:, :, :, : longest + count]
        return joined_keys, joined_values

    def _side_by_side(self, place: int, room: int) -> Tensor:
        """Copy the neighbours of each row: float [2, b, g, longest + room, h], the room without a value."""
        some = next(each.states for row in self.rows for each in row)
        longest = max(self.lengths)
        with torch.inference_mode(False):  # later calls write into it, in inference mode or not
            shape = (2, len(self.rows), some.shape[2], longest + room, some.shape[4])
            buffer = torch.empty(shape, dtype=some.dtype, device=some.device)
        for row, neighbours in enumerate(self.rows):
            end = 0
            for states, _ in neighbours:
                start, end = end, end + states.shape[3]
                buffer[:, row, :, start:end] = states[place]
            buffer[:, row, :, end:longest] = 0  # masked, but no number times 0 is none
        return buffer


class RetrofitCache(RetroCache):
    """The state of generation: the base's own cache, and what is read of neighbours.

    Attributes:
        past: keys and values of the base's self-attention.
        lookups: the newest ones that an inherited reader still reads, oldest first.
        reading: what is read of them together; None before the first call that reads.
        recent_tokens: int64 [b, up to m], the last ones, -1 at padding; None before the first.
    """

    def __init__(self, config: PretrainedConfig, *, chunk_length: int, step: int, padding: Tensor | None) -> None:
        super().__init__(0, chunk_length=chunk_length, step=step, padding=padding)
        self.past = DynamicCache(config=config)
        self.lookups: list[Lookup] = []
        self.reading: WindowNeighbours | None = None
        self.recent_tokens: Tensor | None = None

    def known(self, tokens: Tensor) -> Tensor:
        """Return int64 [b, up to m + t], the last tokens and those [b, t] that come next; -1 at padding."""
        new = known_tokens(tokens, self.padding, self.length)
        return new if self.recent_tokens is None else torch.cat((self.recent_tokens, new), dim=1)

    def advance(self, tokens: Tensor, encoded: Encoded | None = None) -> None:
        """Count tokens int64 [b, t] as seen; see `RetroCache.advance`."""
        self.recent_tokens = self.known(tokens)[:, -self.chunk_length :]
        super().advance(tokens, encoded)

    def select(self, rows: Tensor) -> None:
        """Keep the rows int64 [c] of the batch, in this order."""
        super().select(rows)
        if self.length:
            self.past.batch_select_indices(rows)
        self.lookups, self.reading = [lookup.select(rows) for lookup in self.lookups], None
        self.recent_tokens = None if self.recent_tokens is None else self.recent_tokens[rows]

    def snapshot(self) -> Self:
        """Return the state as it is now, to go back to; see `RetroCache.snapshot`."""
        other = super().snapshot()
        other.past = copy.copy(self.past)
        other.past.layers = [copy.copy(layer) for layer in self.past.layers]
        return other

    def join(self, other: Self, length: int) -> None:
        """Append the rows of another cache, as `RetroCache.join`."""
        for mine, theirs in zip(self.past.layers, other.past.layers, strict=True):
            kept = length
            if isinstance(mine, DynamicSlidingWindowLayer):
                mine.cumulative_length, kept = length, min(length, mine.sliding_window - 1)
            assert isinstance(mine, DynamicLayer) and isinstance(theirs, DynamicLayer)
            mine.keys, mine.values = (
                torch.cat([at_the_right(cast(Tensor, each), kept) for each in pair])
                for pair in ((mine.keys, theirs.keys), (mine.values, theirs.values))
            )
        self.lookups, self.reading = self._joined_lookups(other, length), None
        if self.recent_tokens is not None and other.recent_tokens is not None:  # m each: both have ended a window
            self.recent_tokens = torch.cat((self.recent_tokens, other.recent_tokens))
        super().join(other, length)

    def _joined_lookups(self, other: Self, length: int) -> list[Lookup]:
        """The lookups of both caches, by the position that reads them first, from a common last one on."""
        rows: dict[int, list[dict[Text, Neighbour]]] = {}
        before = 0
        for cache in (self, other):
            num_rows = cache.num_rows or 0
            for lookup in cache.lookups:
                start = lookup.start + length - cache.length
                rows[start] = [*(rows.get(start) or [{}] * before), *lookup.rows]
            before += num_rows
            rows = {start: found + [{}] * (before - len(found)) for start, found in rows.items()}
        return [Lookup(start, rows[start]) for start in sorted(rows)]


def known_tokens(tokens: Tensor, padding: Tensor | None, first: int) -> Tensor:
    """Return tokens int64 [b, t] with -1 at padding.

    Args:
        tokens: of positions `first` on.
        padding: int64 [b], tokens at the left of each row that are padding; None for none.
        first: position of the first token.
    """
    if padding is None:
        return tokens
    places = torch.arange(first, first + tokens.shape[1], device=tokens.device)
    return tokens.masked_fill(places < padding[:, None], -1)


def padded_arguments(cache: RetroCache, num_tokens: int) -> dict[str, Tensor]:
    """Return the base's arguments about padding in the next tokens; none without padding.

    Args:
        cache: with the padding, of the tokens before.
        num_tokens: t, how many come next.

    Returns:
        attention_mask int64 [b, length + t], 0 at padding, and position_ids int64 [b, t], counted without it.
    """
    if cache.padding is None:
        return {}
    end = cache.length + num_tokens
    seen = cache.is_token(0, end)
    assert seen is not None
    positions = torch.arange(cache.length, end, device=seen.device) - cache.padding[:, None]
    return {"attention_mask": seen.long(), "position_ids": positions.clamp(min=0)}
