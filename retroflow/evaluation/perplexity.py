"""Loss over a whole split, every token once.

Shapes: b sequences, n tokens of a sequence, m tokens of a chunk, N chunks of the split.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from retroflow.data.batch import NOT_PREDICTED


class Predicted(Protocol):
    """The part of a batch that evaluation needs."""

    @property
    def targets(self) -> Tensor:
        """int64 [b, n], -100 where nothing is predicted."""
        ...

    @property
    def num_bytes(self) -> Tensor:
        """int64 [b], UTF-8 bytes of the sequences' text."""
        ...


BatchT = TypeVar("BatchT", bound=Predicted)


@dataclass(frozen=True)
class Measure:
    """The loss of a model on a split in one retrieval mode.

    Attributes:
        nats: summed over all predicted tokens.
        tokens: predicted tokens.
        bytes: UTF-8 bytes of the text.
        seconds: duration.
        chunk_nats: float64 [N], nats of the tokens of each chunk.
        chunk_tokens: int64 [N], predicted tokens of each chunk.
    """

    nats: float
    tokens: int
    bytes: int
    seconds: float
    chunk_nats: NDArray[np.float64]
    chunk_tokens: NDArray[np.int64]

    @property
    def loss(self) -> float:
        """Nats per predicted token."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Nats / (ln 2 * bytes); comparable between tokenizers."""
        return self.nats / (math.log(2.0) * self.bytes)

    @property
    def seconds_per_token(self) -> float:
        """Duration per predicted token."""
        return self.seconds / self.tokens

    def of_chunks(self, chunks: NDArray[np.int64]) -> "Measure":
        """Return the same measure with only the chunk losses of `chunks` [c]."""
        return replace(self, chunk_nats=self.chunk_nats[chunks], chunk_tokens=self.chunk_tokens[chunks])

    @property
    def perplexity(self) -> float:
        """Exponential of the loss per token."""
        return math.exp(min(self.loss, 700.0))


def measure(
    losses: Callable[[BatchT], Tensor],
    batches: Iterable[BatchT],
    *,
    num_chunks: int,
    chunk_length: int,
    advance: Callable[[int], None] = lambda sequences: None,
    starts: NDArray[np.int64] | None = None,
) -> Measure:
    """Sum the loss of a split, or of some of its sequences.

    Args:
        losses: returns float [b, n], nats of each position of a batch, 0 where nothing is predicted.
        batches: the split in order, each chunk once.
        num_chunks: N, chunks of the split.
        chunk_length: m.
        advance: called with the number of sequences after each batch; may raise to stop.
        starts: int64 [s], the first chunk of each sequence in the batches; None if they are consecutive.
    """
    began = time.perf_counter()
    # One more row, for the last position of the split, which has no following chunk.
    chunk_nats = np.zeros(num_chunks + 1, dtype=np.float64)
    chunk_tokens = np.zeros(num_chunks + 1, dtype=np.int64)
    first_chunk, done, num_bytes = 0, 0, 0
    for batch in batches:
        nats = losses(batch).double().cpu().numpy()  # [b, n]
        predicted = (batch.targets != NOT_PREDICTED).cpu().numpy().astype(np.int64)
        num_rows, length = nats.shape
        if starts is None:
            of_rows = first_chunk + np.arange(num_rows) * (length // chunk_length)
        else:
            of_rows = starts[done : done + num_rows]
        # Position t predicts token t + 1, which opens the next chunk when t is the last position of its own.
        edges = np.arange(-1, length, chunk_length).clip(0)  # [l + 1], first position of each chunk
        chunks = of_rows[:, None] + np.arange(len(edges))  # [b, l + 1]
        np.add.at(chunk_nats, chunks, np.add.reduceat(nats, edges, axis=1))
        np.add.at(chunk_tokens, chunks, np.add.reduceat(predicted, edges, axis=1))
        first_chunk += num_rows * length // chunk_length
        done += num_rows
        num_bytes += int(batch.num_bytes.sum())
        advance(num_rows)
    return Measure(
        nats=float(chunk_nats.sum()),
        tokens=int(chunk_tokens.sum()),
        bytes=num_bytes,
        seconds=time.perf_counter() - began,
        chunk_nats=chunk_nats[:num_chunks],
        chunk_tokens=chunk_tokens[:num_chunks],
    )
