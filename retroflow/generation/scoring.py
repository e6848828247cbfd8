"""How well a model predicts a text, with retrieval."""

import math
from dataclasses import dataclass

import numpy as np

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
        nats: of each of these tokens; of all but the first, which is not predicted, if there is no context.
        bytes: of the text in UTF-8.
        retrievals: in order, those of the context first.
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
    context: str = "",
    retriever: LiveRetriever | None = None,
    num_neighbours: int = 2,
    retrieval_step: int | None = None,
) -> Score:
    """Measure how well a model predicts a text, with retrieval at the end of each window.

    Context and text are cut into tokens together; a token that is in both counts as the text's. A window ends where
    the context ends, as at the end of a prompt. Without a context the first window is the text's first chunk.

    Args:
        model: as in `generate`.
        tokenizer: as in `generate`.
        text: at least one token.
        context: what comes before it, and is not scored.
        retriever: as in `generate`.
        num_neighbours: chunks to retrieve for a window (k).
        retrieval_step: tokens between two retrievals (s); None for the chunk length.

    Raises:
        GenerationError: as `generate`.
    """
    ((whole, tokens),) = encoded(tokenizer, [text and context + text])
    encoding = tokenizer.encode(whole)
    ends = np.append(encoding.byte_starts[1:], encoding.num_bytes)
    before = int((ends <= len(context.encode())).sum())
    options = GenerationOptions(align=before > 0, num_neighbours=num_neighbours, retrieval_step=retrieval_step)
    row = Row(0, whole, tokens[:before] or tokens, tokenizer, ())
    step = options.step_for(model.config.chunk_length)
    nats = Decoding(model, tokenizer, retriever, options, step, None).losses(row, tokens[before:] if before else [])
    return Score(tuple(tokens[before:]), tuple(nats), len(text.encode()), tuple(row.retrievals))
