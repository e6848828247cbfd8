"""How a pass over the decoder reads neighbours: encoded once, at the first CCA layer, then read by every CCA layer.

Two kinds answer the same two calls: `SequenceReading` for a whole sequence, and `retroflow.model.cache.CachedReading`
for a few tokens after a cache.

Shapes: b batch, n tokens of a sequence, m tokens of a chunk, s tokens between two lookups, W windows, k neighbours,
r tokens of a neighbour, d decoder features, e encoder features.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from retroflow.model.chunked_cross_attention import ChunkedCrossAttention
from retroflow.model.windows import windows_of

Encode = Callable[["Retrieved", Tensor, Tensor | None], Tensor]
"""(retrieved text, chunks float [b, W, m, d], chunk mask bool [b, W, m] or None) -> float [b, W, k, r, e]."""


class Retrieved:
    """The retrieved text of W windows.

    Attributes:
        tokens: int64 [b, W, k, r].
        mask: bool [b, W, k, r], True where a token was retrieved; None where all were.
    """

    def __init__(self, tokens: Tensor, mask: Tensor | None) -> None:
        self.tokens, self.mask = tokens, mask

    def windows(self, start: int, stop: int) -> "Retrieved":
        """The text of the windows start .. stop - 1."""
        part = slice(start, stop)
        return Retrieved(self.tokens[:, part], None if self.mask is None else self.mask[:, part])

    def without_empty_windows(self, chunk_mask: Tensor | None) -> "Retrieved":
        """Take back what was given for windows that are padding alone; chunk_mask is bool [b, W, m]."""
        if chunk_mask is None:
            return self
        has_text = chunk_mask.any(-1)[:, :, None, None]
        mask = has_text if self.mask is None else self.mask & has_text
        return Retrieved(self.tokens, mask.expand(self.tokens.shape))


class Reading(Protocol):
    """What a decoder block asks of the neighbours."""

    def encode(self, x: Tensor) -> None:
        """Encode the neighbours given x float [b, t, d], the activations that the first CCA layer reads with."""
        ...

    def read(self, cca: ChunkedCrossAttention, x: Tensor) -> Tensor:
        """Compute a CCA layer's residual update of its normalised x float [b, t, d]."""
        ...


class SequenceReading:
    """The neighbours of every window of whole sequences.

    Args:
        retrieved: of all windows.
        encode: the model's encoder.
        chunk_length: m.
        step: s.
        given: bool [b, n], False at padding; None without any.
    """

    def __init__(
        self, retrieved: Retrieved, encode: Encode, *, chunk_length: int, step: int, given: Tensor | None = None
    ) -> None:
        self._retrieved, self._encode = retrieved, encode
        self._chunk_length, self._step, self._given = chunk_length, step, given
        self.encoded = torch.empty(0)
        self._again: Tensor | None = None

    @property
    def retrieved(self) -> Retrieved:
        """What was retrieved, without the windows that are padding alone."""
        return self._retrieved

    def encode(self, x: Tensor) -> None:
        """Encode the neighbours of every window given x float [b, n, d]; `encoded` is then float [b, W, k, r, e].

        Activation checkpointing calls it once more in the backward pass. What it computes then is for the next `read`
        alone: kept any longer it would hold all of the encoder's activations until the end of the step.
        """
        m, given = self._chunk_length, self._given
        chunk_mask = None if given is None else windows_of(given, m, self._step)
        self._retrieved = self._retrieved.without_empty_windows(chunk_mask)
        encoded = self._encode(self._retrieved, windows_of(x, m, self._step), chunk_mask)
        if self.encoded.numel():
            self._again = encoded
        else:
            self.encoded = encoded

    def read(self, cca: ChunkedCrossAttention, x: Tensor) -> Tensor:
        """Compute a CCA layer's residual update of its normalised x float [b, n, d]."""
        again, self._again = self._again, None
        return cca(x, self.encoded if again is None else again, self._retrieved.mask, self._step)
