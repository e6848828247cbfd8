"""How well a model predicts a text, with retrieval."""

import math
from dataclasses import dataclass

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.generation.decoding import Decoding, encoded
from retroflow.generation.options import GenerationOptions
from retroflow.generation.retrieved import LiveRetriever, Retrieval
from retroflow.generation.rows import Row
from retroflow.protocols import RetrievalModel


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text.

    Attributes:
        tokens: of the text.
        nats: of each token but the first, which is not predicted.
        bytes: of the text in UTF-8.
        retrievals: in order.
    """

    tokens: tuple[int, ...]
    nats: tuple[float, ...]
    bytes: int
    retrievals: tuple[Retrieval, ...]

    @property
    def loss(self) -> float:
        """Nats per predicted token."""
        return sum(self.nats) / max(1, len(self.nats))

    @property
    def bits_per_byte(self) -> float:
        """Sum of all nats, in bits per byte of the text."""
        return sum(self.nats) / math.log(2) / max(1, self.bytes)


def score(
    model: RetrievalModel,
    tokenizer: Tokenizer,
    text: str,
    *,
    retriever: LiveRetriever | None = None,
    num_neighbours: int = 2,
) -> Score:
    """Measure how well a model predicts a text, with retrieval at the end of each chunk.

    Args:
        model: as in `generate`.
        tokenizer: as in `generate`.
        text: at least one token.
        retriever: as in `generate`.
        num_neighbours: chunks to retrieve for a chunk (k).

    Raises:
        GenerationError: as `generate`.
    """
    options = GenerationOptions(align=False, num_neighbours=num_neighbours)
    ((prompt, tokens),) = encoded(tokenizer, [text])
    row = Row(0, prompt, tokens, tokenizer, ())
    step = options.step_for(model.config.chunk_length)
    nats = Decoding(model, tokenizer, retriever, options, step, None).losses(row)
    return Score(tuple(row.tokens), tuple(nats), len(text.encode()), tuple(row.retrievals))
