"""How well a model predicts a text, with retrieval."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.generation.decoding import Decoding, encoded
from retroflow.generation.options import GenerationOptions
from retroflow.generation.retrieved import LiveRetriever, Retrieval
from retroflow.generation.rows import Row, aligned_length
from retroflow.protocols import RetrievalModel


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text.

    Attributes:
        tokens: of the text.
        nats: of each of these tokens; of all but the first, which is not predicted, if there is no context.
        bytes: of the text in UTF-8.
        retrievals: in order, those of the context first.
        likeliest: for each of `nats`, whether no other token is likelier.
    """

    tokens: tuple[int, ...]
    nats: tuple[float, ...]
    bytes: int
    retrievals: tuple[Retrieval, ...]
    likeliest: tuple[bool, ...] = ()

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
    options = GenerationOptions(num_neighbours=num_neighbours, retrieval_step=retrieval_step)
    pairs = [split_tokens(tokenizer, text, context) for text in texts]
    after = [(before, own) for before, own in pairs if before]
    together = iter(score_after(model, tokenizer, after, retriever=retriever, options=options))
    decoding = Decoding(
        model, tokenizer, retriever, replace(options, align=False), options.step_for(model.config.chunk_length), None
    )
    scores = []
    for text, (before, own) in zip(texts, pairs, strict=True):
        if before:
            scores.append(replace(next(together), bytes=len(text.encode())))
            continue
        row = Row(0, text, own, tokenizer, ())
        nats, likeliest = decoding.losses(row)
        scores.append(Score(tuple(own), tuple(nats), len(text.encode()), tuple(row.retrievals), tuple(likeliest)))
    return scores


def score_after(
    model: RetrievalModel,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    retriever: LiveRetriever | None,
    options: GenerationOptions,
    advance: Callable[[int], None] = lambda pairs: None,
) -> list[Score]:
    """Score continuations of contexts, several contexts at a time; equal contexts are processed once.

    Args:
        model: as in `generate`.
        tokenizer: as in `generate`.
        pairs: tokens of a context and of its continuation, at least one each.
        retriever: as in `generate`.
        options: num_neighbours, retrieval_step, batch_size: the contexts that are computed together.
        advance: called with the number of finished pairs; may raise to stop.

    Returns:
        A score for each pair, in their order. Bytes are those of the continuation's tokens as text.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for place, (context, _) in enumerate(pairs):
        places.setdefault(tuple(context), []).append(place)
    longest = {context: max(len(pairs[place][1]) for place in of_context) for context, of_context in places.items()}
    m = model.config.chunk_length
    options = replace(options, align=retriever is not None)
    decoding = Decoding(model, tokenizer, retriever, options, options.step_for(m), None)
    scores: dict[int, Score] = {}
    for batch in _batches(longest, options, m, model.max_length):
        rows = [Row(place, "", context, tokenizer, ()) for place, context in enumerate(batch)]
        order = [(row, place) for row, context in enumerate(batch) for place in places[context]]
        found = decoding.losses_after(rows, [(row, pairs[place][1]) for row, place in order])
        for (_, place), (row, nats, likeliest) in zip(order, found, strict=True):
            own = tuple(pairs[place][1])
            size = len(tokenizer.decode(own).encode())
            scores[place] = Score(own, tuple(nats), size, tuple(row.retrievals), tuple(likeliest))
        advance(len(order))
    return [scores[place] for place in range(len(pairs))]


def score_within(
    model: RetrievalModel,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    retriever: LiveRetriever | None,
    options: GenerationOptions,
    advance: Callable[[int], None] = lambda pairs: None,
) -> list[Score]:
    """Score continuations as parts of whole texts, as `score` without a context and the server's `echo` do.

    No window depends on where a context ends: the first one is the text's first chunk. Without retrieval the nats are
    those of `score_after`, which takes less time.

    Arguments and result are those of `score_after`; retrievals are those of the whole text.
    """
    step = options.step_for(model.config.chunk_length)
    decoding = Decoding(model, tokenizer, retriever, replace(options, align=False), step, None)
    scores = []
    for context, own in pairs:
        row = Row(0, "", [*context, *own], tokenizer, ())
        nats, likeliest = decoding.losses(row)
        size, first = len(tokenizer.decode(list(own)).encode()), -len(own)
        scores.append(Score(tuple(own), tuple(nats[first:]), size, tuple(row.retrievals), tuple(likeliest[first:])))
        advance(1)
    return scores


def _batches(
    longest: Mapping[tuple[int, ...], int], options: GenerationOptions, m: int, most: int | None
) -> Iterator[list[tuple[int, ...]]]:
    """Group contexts of similar length so that each batch, padded, has at most `most` positions.

    Args:
        longest: context -> tokens of its longest continuation.
        options: as in `score_after`.
        m: tokens of a chunk.
        most: positions of the model; None for any number.
    """
    batch, after = list[tuple[int, ...]](), 0
    for context in sorted(longest, key=len):
        length = len(context)
        padded = aligned_length(length, m, options.step_for(m)) if options.align else length
        after = max(after, longest[context])
        is_too_long = most is not None and padded + after - 1 > most
        if batch and (is_too_long or len(batch) == options.batch_size):
            yield batch
            batch, after = [], longest[context]
        batch.append(context)
    if batch:
        yield batch


def split_tokens(tokenizer: Tokenizer, text: str, context: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a context, and those of the text after it; a token that is in both is the text's."""
    ((whole, tokens),) = encoded(tokenizer, [text and context + text])
    encoding = tokenizer.encode(whole)
    ends = np.append(encoding.byte_starts[1:], encoding.num_bytes)
    before = int((ends <= len(context.encode())).sum())
    return tokens[:before], tokens[before:]
