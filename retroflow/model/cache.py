"""The state that generation keeps between calls, so that each new token costs one token's work.

It keeps the keys and values of every self-attention, the last m activations for the encoder (H_u), and the newest
window's neighbours, encoded once and projected once for each CCA layer. Later positions do not read older windows.

Shapes: b batch, t new tokens, m tokens of a chunk, s tokens between two lookups, k neighbours, r tokens of a
neighbour, d decoder features, e encoder features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from retroflow.model.attention import KeyValues
from retroflow.model.chunked_cross_attention import ChunkedCrossAttention, ReadyNeighbours
from retroflow.model.reading import Encode, Reading, Retrieved, SequenceReading
from retroflow.model.windows import num_windows

MASK_AT_ONCE = 1 << 24
"""Pairs of a query and a key, over all rows, that one part of a sequence may have: 64 MB as a float32 mask."""

RETRIEVED_AT_ONCE = 1 << 17
"""Retrieved tokens that are encoded at one time while a cache is filled: 0.5 GB for 1,024 features in float32."""


@dataclass
class Window:
    """The newest complete window.

    Attributes:
        end: number of tokens at its end, T(w).
        encoded: float [b, k, r, e], its neighbours.
        mask: bool [b, k, r]; None where all tokens exist.
        ready: the same, projected for each CCA layer that has read it.
    """

    end: int
    encoded: Tensor
    mask: Tensor | None
    ready: dict[ChunkedCrossAttention, ReadyNeighbours] = field(default_factory=dict)

    def select(self, rows: Tensor) -> "Window":
        """The rows int64 [c] of the batch."""
        ready = {cca: neighbours.select(rows) for cca, neighbours in self.ready.items()}
        return Window(self.end, self.encoded[rows], None if self.mask is None else self.mask[rows], ready)


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
        self.layers = [KeyValues() for _ in range(num_layers)]
        self.chunk_length, self.step, self.padding = chunk_length, step, padding
        self.length = 0
        self.num_rows: int | None = None
        self.recent: Tensor | None = None
        self.previous: Tensor | None = None
        self.window: Window | None = None

    def advance(self, tokens: Tensor) -> None:
        """Count tokens [b, t] as seen, after all layers have stored their state."""
        self.num_rows, self.length = tokens.shape[0], self.length + tokens.shape[1]

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
        self.padding = None if self.padding is None else self.padding[rows]
        self.recent = None if self.recent is None else self.recent[rows]
        self.previous = None if self.previous is None else self.previous[rows]
        self.window = None if self.window is None else self.window.select(rows)

    def given(self, start: int, stop: int) -> Tensor | None:
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

    def remember(self, x: Tensor) -> None:
        """Store the activations x float [b, t, d] that the encoder will need."""
        recent = x if self.recent is None else torch.cat((self.recent, x), dim=1)
        self.recent = recent[:, -self.chunk_length :]


class FirstReading(SequenceReading):
    """A whole sequence read while the cache is filled: as in training, and the last window stays for later tokens."""

    def __init__(self, retrieved: Retrieved, encode: Encode, cache: RetroCache, length: int) -> None:
        super().__init__(
            retrieved, encode, chunk_length=cache.chunk_length, step=cache.step, given=cache.given(0, length)
        )
        self._cache = cache

    def encode(self, x: Tensor) -> None:
        """Encode every window given x float [b, t, d]; the last window stays in the cache."""
        super().encode(x)
        cache = self._cache
        cache.remember(x)
        last = self.encoded.shape[1] - 1
        mask = self.retrieved.mask
        end = cache.chunk_length + last * cache.step
        cache.window = Window(end, self.encoded[:, last], None if mask is None else mask[:, last])


class CachedReading:
    """A few tokens after a cache, all of which read the same window; it may close at the first of them.

    Args:
        cache: its `length` is that before these tokens.
        closes: whether a window closes at the first token.
        retrieved: for that window, W = 1; None if nothing was looked up for it.
        encode: the model's encoder.
    """

    def __init__(self, cache: RetroCache, *, closes: bool, retrieved: Retrieved | None, encode: Encode) -> None:
        self._cache, self._closes, self._retrieved, self._encode = cache, closes, retrieved, encode

    def encode(self, x: Tensor) -> None:
        """Encode the window that closes at the first of x float [b, t, d], if one does."""
        cache = self._cache
        if self._closes:
            cache.window = self._new_window(x)
        cache.remember(x)

    def read(self, cca: ChunkedCrossAttention, x: Tensor) -> Tensor:
        """Compute a CCA layer's residual update of its normalised x float [b, t, d]: zero before any window."""
        window = self._cache.window
        if window is None:
            return torch.zeros_like(x)
        if cca not in window.ready:
            window.ready[cca] = cca.prepare(window.encoded, window.mask)
        return cca.read(x, window.ready[cca], offset=self._cache.length + 1 - window.end)

    def _new_window(self, x: Tensor) -> Window | None:
        if self._retrieved is None:
            return None
        cache = self._cache
        end = cache.length + 1
        chunk = x[:, :1] if cache.recent is None else torch.cat((cache.recent, x[:, :1]), dim=1)
        given = cache.given(end - cache.chunk_length, end)
        chunk_mask = None if given is None else given[:, None]
        retrieved = self._retrieved.without_empty_windows(chunk_mask)
        encoded = self._encode(retrieved, chunk[:, None, -cache.chunk_length :], chunk_mask)
        return Window(end, encoded[:, 0], None if retrieved.mask is None else retrieved.mask[:, 0])


C = TypeVar("C", bound=RetroCache)


def extend_with_cache(
    tokens: Tensor,
    cache: C,
    retrieved: Retrieved | None,
    encode: Encode,
    advance: Callable[[Tensor, C, Reading], Tensor],
) -> Tensor:
    """Run more tokens through a model that has a cache, in parts of bounded memory.

    The first tokens of a sequence are run as in training, later ones a segment at a time, or many at once where
    nothing is retrieved. Time grows with the square of all tokens, memory with their number.

    Args:
        tokens: int64 [b, t], those that follow what the cache has seen.
        cache: of the model.
        retrieved: of the windows that these tokens close; None where nothing was looked up.
        encode: the model's encoder.
        advance: runs a part of the tokens, int64 [b, p], with a reading, and counts them in the cache; gives
            float [b, p, *].

    Returns:
        What `advance` gave, float [b, t, *].
    """
    outputs, done, window = [], 0, 0
    while done < tokens.shape[1]:
        length = _part_length(cache, tokens[:, done:], retrieved)
        part = tokens[:, done : done + length]
        count, closes = cache.num_new_windows(length), cache.num_new_windows(1) == 1
        of_part = None if retrieved is None or not count else retrieved.windows(window, window + count)
        reading: Reading = CachedReading(cache, closes=closes, retrieved=of_part, encode=encode)
        if cache.length == 0 and of_part is not None:
            reading = FirstReading(of_part, encode, cache, length)
        outputs.append(advance(part, cache, reading))
        done, window = done + length, window + count
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


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
