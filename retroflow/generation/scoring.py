"""How well a model predicts a text, with retrieval."""

import math
from collections.abc import Sequence
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
    (found,) = score_each(
        model,
        tokenizer,
        [text],
        context=context,
        retriever=retriever,
        num_neighbours=num_neighbours,
        retrieval_step=retrieval_step,
    )
    return found


def score_each(
    model: RetrievalModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    context: str,
    retriever: LiveRetriever | None,
    num_neighbours: int,
    retrieval_step: int | None,
) -> list[Score]:
    """Score several texts for the same place as `score` does; what is before them is processed once."""
    scores: dict[int, Score] = {}
    together: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for place, text in enumerate(texts):
        context_tokens, own = _split(tokenizer, text, context)
        together.setdefault(tuple(context_tokens), {})[place] = own
    for before, owns in together.items():
        options = GenerationOptions(align=bool(before), num_neighbours=num_neighbours, retrieval_step=retrieval_step)
        step = options.step_for(model.config.chunk_length)
        decoding = Decoding(model, tokenizer, retriever, options, step, None)
        if before:
            found = decoding.losses_after(Row(0, context, before, tokenizer, ()), list(owns.values()))
        else:
            rows = [Row(0, texts[place], own, tokenizer, ()) for place, own in owns.items()]
            found = ((row, decoding.losses(row)) for row in rows)
        for (place, own), (row, nats) in zip(owns.items(), found, strict=True):
            scores[place] = Score(tuple(own), tuple(nats), len(texts[place].encode()), tuple(row.retrievals))
    return [scores[place] for place in range(len(texts))]


def _split(tokenizer: Tokenizer, text: str, context: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a context, and those of the text after it."""
    ((whole, tokens),) = encoded(tokenizer, [text and context + text])
    encoding = tokenizer.encode(whole)
    ends = np.append(encoding.byte_starts[1:], encoding.num_bytes)
    before = int((ends <= len(context.encode())).sum())
    return tokens[:before], tokens[before:]
