"""A batch of sequences with their retrieved text, for training and evaluation.

Shapes: b sequences, n tokens of a sequence, m tokens of a chunk, l = n / m chunks, k neighbours, r = 2m retrieved
tokens of a neighbour (the neighbour, then its continuation).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

NOT_PREDICTED = -100
"""Target value of a position whose next token is padding; torch's cross-entropy ignores it by default."""


class Batch(NamedTuple):
    """Sequences and the text retrieved for each of their chunks.

    Attributes:
        tokens: int64 [b, n], the decoder's input; padding is the end-of-text token.
        targets: int64 [b, n], the next token of the store, or `NOT_PREDICTED`.
        retrieved: int64 [b, l, k, r], retrieved[i, u] belongs to chunk u of row i; [b, W, k, r] of W windows where
            lookups are more frequent; None without retrieval.
        retrieved_mask: bool of that shape, True where `retrieved` is a real token; None without retrieval.
        num_bytes: int64 [b], UTF-8 bytes of the text in the row's chunks.
        padding: int64 [b], tokens at the left of each row that are padding; None for none.
        is_random: bool [b, l], True where `retrieved` was drawn and not found; None where nothing is drawn.
    """

    tokens: Tensor
    targets: Tensor
    retrieved: Tensor | None
    retrieved_mask: Tensor | None
    num_bytes: Tensor
    is_random: Tensor | None = None
    padding: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return self._each(lambda part: part.to(device))

    def rows(self, first: int, stop: int) -> "Batch":
        """Return sequences first to stop (excluded)."""
        return self._each(lambda part: part[first:stop])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(
            tokens=change(self.tokens),
            targets=change(self.targets),
            retrieved=None if self.retrieved is None else change(self.retrieved),
            retrieved_mask=None if self.retrieved_mask is None else change(self.retrieved_mask),
            num_bytes=change(self.num_bytes),
            is_random=None if self.is_random is None else change(self.is_random),
            padding=None if self.padding is None else change(self.padding),
        )

    def without_retrieval(self) -> "Batch":
        """Return the same sequences without retrieved text."""
        return self._replace(retrieved=None, retrieved_mask=None, is_random=None)
