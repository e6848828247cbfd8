"""The state that generation keeps between calls, so that each new token costs one token's work.

It keeps the keys and values of every self-attention, the last m activations for the encoder (H_u), and the newest
window's neighbours, encoded once and projected once for each CCA layer. Later positions do not read older windows.

Shapes: b batch, t new tokens, m tokens of a chunk, s tokens between two lookups, k neighbours, r tokens of a
neighbour, d decoder features, e encoder features.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Self, TypeVar

import torch
from torch import Tensor

from retroflow.model.attention import KeyValues
from retroflow.model.neighbours import Encode, Encoded, Retrieved, joined_windows
from retroflow.model.windows import num_windows

MASK_AT_ONCE = 1 << 24
"""Pairs of a query and a key, over all rows, that one part of a sequence may have: 64 MB as a float32 mask."""

RETRIEVED_AT_ONCE = 1 << 17
"""Retrieved tokens that are encoded at one time while a cache is filled: 0.5 GB for 1,024 features in float32."""


class RetroCache:
    """The state of generation for a batch of sequences; made by `new_cache`, advanced by `extend`.

    Attributes:
        layers: one for each decoder block.
        chunk_length: m.
        step: s.
        padding: int64 [b], padding at the left of each row; None without any.
        length: tokens seen so far, padding counted.
        num_rows: b; None before the first token.
        recent: float [b, up to m, d], the last activations after the self-attention of the first CCA layer; None
            before the first token.
        previous: float [b, 1, d], the last token's embedding before smear; None before the first token.
        window: the newest window with neighbours; None before the first, or after one without any.
    """

    def __init__(self, num_layers: int, *, chunk_length: int, step: int, padding: Tensor | None) -> None:
        self.layers = [KeyValues(padding) for _ in range(num_layers)]
        self.chunk_length, self.step, self.padding = chunk_length, step, padding
        self.length = 0
        self.num_rows: int | None = None
        self.recent: Tensor | None = None
        self.previous: Tensor | None = None
        self.window: Encoded | None = None
        self._device: torch.device | None = None

    def advance(self, tokens: Tensor, encoded: Encoded | None = None) -> None:
        """Count tokens [b, t] as seen, after all layers have stored their state.

        Args:
            tokens: of the call.
            encoded: the neighbours that the call returned; None without CCA.
        """
        self.num_rows, self.length, self._device = tokens.shape[0], self.length + tokens.shape[1], tokens.device
        if encoded is not None:
            recent = self.recent_with(encoded.hidden)
            self.recent, self.window = recent[:, -self.chunk_length :], encoded.newest()

    def recent_with(self, x: Tensor) -> Tensor:
        """The last activations, followed by x float [b, t, d]."""
        return x if self.recent is None else torch.cat((self.recent, x), dim=1)

    def num_new_windows(self, num_tokens: int) -> int:
        """Return how many windows the next `num_tokens` tokens complete; `extend` takes neighbours for these."""
        before, after = self.length, self.length + num_tokens
        m, s = self.chunk_length, self.step
        return num_windows(after, m, s) - num_windows(before, m, s)

    def segment(self, num_tokens: int) -> int:
        """Return how many of the next tokens read the same neighbours; only the first of them can complete a window."""
        next_end = self.chunk_length + num_windows(self.length + 1, self.chunk_length, self.step) * self.step
        return min(num_tokens, next_end - 1 - self.length)

    def select(self, rows: Tensor) -> None:
        """Keep the rows int64 [c] of the batch, in this order."""
        for layer in self.layers:
            layer.select(rows)
        self.num_rows = None if self.num_rows is None else len(rows)
        self._set_padding(None if self.padding is None else self.padding[rows])
        self.recent = None if self.recent is None else self.recent[rows]
        self.previous = None if self.previous is None else self.previous[rows]
        self.window = None if self.window is None else self.window.select(rows)

    def snapshot(self) -> Self:
        """Return the state as it is now, to go back to; what this cache does afterwards does not change it.

        The two share memory, so only one of them may be extended: from then on the other is of no use if it is longer.
        """
        other = copy.copy(self)
        other.layers = [copy.copy(layer) for layer in self.layers]
        return other

    def join(self, other: Self, length: int) -> None:
        """Append the rows of another cache, which is used up, when both have just ended a window.

        Both have `length` tokens afterwards: padding is added at the left of their rows, or what all rows have is
        dropped. The windows stay if the change is a multiple of the step.

        Args:
            other: of the same model and step, with as many neighbours.
            length: at least that of the longest row without padding.
        """
        assert self.num_rows is not None and other.num_rows is not None
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.join(theirs, length)
        paddings = [cache._padding_of_all + length - cache.length for cache in (self, other)]
        self.recent, self.previous = (
            None if mine is None or theirs is None else torch.cat((mine, theirs))
            for mine, theirs in ((self.recent, other.recent), (self.previous, other.previous))
        )
        self.window = joined_windows((self.window, self.num_rows), (other.window, other.num_rows))
        self.num_rows, self.length = self.num_rows + other.num_rows, length
        padding = torch.cat(paddings)
        self._set_padding(padding if padding.any() else None)

    @property
    def _padding_of_all(self) -> Tensor:
        """Padding int64 [b], 0 without any."""
        return (
            torch.zeros(self.num_rows or 0, dtype=torch.int64, device=self._device)
            if self.padding is None
            else self.padding
        )

    def _set_padding(self, padding: Tensor | None) -> None:
        self.padding = padding
        for layer in self.layers:
            layer.padding = padding

    def is_token(self, start: int, stop: int) -> Tensor | None:
        """Which of the positions start .. stop - 1 hold tokens and not padding: bool [b, stop - start], or None."""
        if self.padding is None:
            return None
        return torch.arange(start, stop, device=self.padding.device) >= self.padding[:, None]

    def attention_mask(self, num_tokens: int) -> Tensor | None:
        """Return which positions each of the next tokens can attend to.

        Args:
            num_tokens: t, how many tokens come next.

        Returns:
            bool [b or 1, 1, t, length + t]; None for plain causality.
        """
        start, end = self.length, self.length + num_tokens
        if self.padding is None and (start == 0 or num_tokens == 1):
            return None
        device = self.layers[0].device if self.padding is None else self.padding.device
        keys = torch.arange(end, device=device)
        queries = torch.arange(start, end, device=device)[:, None]
        seen = (keys <= queries)[None]
        if self.padding is not None:
            # Padding attends to itself, so that its softmax is defined; no other position attends to it.
            seen = seen & ((keys >= self.padding[:, None, None]) | (keys == queries))
        return seen[:, None]


C = TypeVar("C", bound=RetroCache)
EncodeWindows = Callable[..., Encoded]
"""`RetrievedEncoder.forward` with the decoder's embedding: (retrieved, hidden, *, step, is_token)."""


def extend_with_cache(
    tokens: Tensor,
    cache: C,
    retrieved: Retrieved | None,
    encode: EncodeWindows | None,
    run: Callable[[Tensor, C, Encode | None], tuple[Tensor, Encoded | None]],
) -> Tensor:
    """Run more tokens through a model that has a cache, in parts of bounded memory.

    The first tokens of a sequence are run as in training, later ones a segment at a time, or many at once where
    nothing is retrieved. Time grows with the square of all tokens, memory with their number.

    Args:
        tokens: int64 [b, t], those that follow what the cache has seen.
        cache: of the model; it counts the tokens.
        retrieved: of the windows that these tokens close; None where nothing was looked up.
        encode: the model's encoder; None of a model without CCA.
        run: runs a part of the tokens, int64 [b, p]; returns float [b, p, *], and the neighbours that it has read.

    Returns:
        What `run` returned, float [b, t, *].
    """
    outputs, done, window = [], 0, 0
    while done < tokens.shape[1]:
        length = _part_length(cache, tokens[:, done:], retrieved)
        part, count = tokens[:, done : done + length], cache.num_new_windows(length)
        of_part = None if retrieved is None or not count else retrieved.windows(window, window + count)
        output, encoded = run(part, cache, None if encode is None else partial(_encode_part, cache, of_part, encode))
        cache.advance(part, encoded)
        outputs.append(output)
        done, window = done + length, window + count
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _encode_part(cache: RetroCache, retrieved: Retrieved | None, encode: EncodeWindows, hidden: Tensor) -> Encoded:
    """Encode the windows that tokens with activations float [b, t, d] close; without any they read the newest one."""
    m, end = cache.chunk_length, cache.length + 1
    if cache.length == 0 and retrieved is not None:
        return encode(retrieved, hidden, step=cache.step, is_token=cache.is_token(0, hidden.shape[1]))
    window = cache.window
    if cache.num_new_windows(1):  # later tokens of a part close no window, or nothing was looked up for it
        window = None
        if retrieved is not None:
            recent = cache.recent_with(hidden[:, :1])[:, -m:]
            encoded = encode(retrieved, recent, step=m, is_token=cache.is_token(end - m, end))
            window = replace(encoded, first=0, ready={})
    if window is None:
        return Encoded(hidden.new_empty(hidden.shape[0], 0, 0, 0, 0), None, 0, cache.step, hidden)
    return replace(window, hidden=hidden)


def _part_length(cache: RetroCache, tokens: Tensor, retrieved: Retrieved | None) -> int:
    """How many of tokens int64 [b, t] are run next."""
    num_rows, num_tokens = tokens.shape
    if cache.length and (retrieved is not None or cache.window is not None):
        return cache.segment(num_tokens)
    # The longest part whose mask [b, p, length + p] is small enough.
    most = int((math.sqrt(cache.length**2 + 4 * MASK_AT_ONCE / max(1, num_rows)) - cache.length) / 2)
    if retrieved is not None:
        num_windows_at_once = RETRIEVED_AT_ONCE // max(1, retrieved.tokens[:, :1].numel())
        most = min(most, cache.chunk_length + num_windows_at_once * cache.step - 1)
    return max(1, min(num_tokens, most))
