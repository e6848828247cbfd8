"""Generate text: one token of every row at a time, with retrieval as soon as a window ends.

Rows are padded at the left to a common length at which a window ends (`GenerationOptions.align`). Each row keeps the
windows that it has alone: a longer prompt beside it adds padding, and windows in that padding are not looked up. So
no row's text depends on the others.

Shapes: b rows, t tokens of a call, m tokens of a chunk, s tokens between two retrievals, w windows that a call ends,
k neighbours, r = 2m tokens of a neighbour with its continuation, v vocabulary.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.errors import GenerationError
from retroflow.generation.arguments import ArgumentError, Problem
from retroflow.generation.options import GenerationOptions
from retroflow.generation.retrieved import LiveRetriever, Retrieval, retrieve
from retroflow.generation.rows import Generation, Piece, Row, aligned_length
from retroflow.generation.sampling import Sampler
from retroflow.model.windows import num_windows
from retroflow.protocols import RetrievalModel

LOGITS_AT_ONCE = 1 << 27
"""Logits in memory at one time while prompts are processed, 512 MB in float32."""

TOKENS_AT_ONCE = 4096
"""Tokens of a row that are processed between two reports of progress."""

Progress = Callable[[int, int], None]
"""Called before each part of a batch of prompts with a row's processed tokens and all its tokens, with padding."""

Prompt = str | Sequence[int]


def generate(
    model: RetrievalModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    retriever: LiveRetriever | None = None,
    options: GenerationOptions | None = None,
) -> list[Generation]:
    """Generate a continuation of every prompt.

    Args:
        model: on any device; dropout is switched off meanwhile.
        tokenizer: the model's.
        prompts: texts, or their tokens.
        retriever: source of neighbours, such as a `RetrievalDatabase`; None switches retrieval off.
        options: None for the defaults: greedy, 128 tokens.

    Returns:
        One generation per prompt, in the same order.

    Raises:
        GenerationError: a prompt without tokens or with unknown tokens, or options that do not fit the model.
        RetroflowError: as the retriever or the model.
    """
    finished = stream(model, tokenizer, prompts, retriever=retriever, options=options)
    generations = [piece.generation for piece in finished if piece.generation is not None]
    return sorted(generations, key=lambda generation: generation.number)


def stream(
    model: RetrievalModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    retriever: LiveRetriever | None = None,
    options: GenerationOptions | None = None,
    reading: Progress | None = None,
) -> Iterator[Piece]:
    """Generate as `generate` does, and yield text as soon as it is final.

    Args:
        model: as in `generate`.
        tokenizer: as in `generate`.
        prompts: as in `generate`.
        retriever: as in `generate`.
        options: as in `generate`.
        reading: called with the progress of processing the prompts.

    Returns:
        Pieces of text of all prompts, interleaved; the last piece of each prompt has its whole `Generation`.

    Raises:
        GenerationError: as `generate`, at once.
    """
    options = options or GenerationOptions()
    step = options.step_for(model.config.chunk_length)
    if tokenizer.vocabulary_size > model.config.vocabulary_size:
        raise GenerationError(
            f"tokenizer: it has {tokenizer.vocabulary_size} tokens, and the model {model.config.vocabulary_size}; "
            "give the tokenizer that the model was trained with."
        )
    rows = [
        Row(number, prompt, tokens, tokenizer, options.stop)
        for number, (prompt, tokens) in enumerate(encoded(tokenizer, prompts))
    ]
    check_lengths(model, rows, options, step)
    return _stream_batches(Decoding(model, tokenizer, retriever, options, step, reading), rows)


def check_lengths(model: RetrievalModel, rows: Sequence[Row], options: GenerationOptions, step: int) -> None:
    """Refuse at once what a model with learned positions would refuse later.

    Raises:
        ArgumentError: a prompt and its new tokens have more positions than the model.
    """
    most = model.max_length
    if most is None:
        return
    for row in rows:
        length = len(row.tokens)
        padded = aligned_length(length, model.config.chunk_length, step) if options.align else length
        needed = padded + options.max_new_tokens - 1  # the model does not read the last token
        if needed > most:
            text = (
                f"{length} tokens ({padded} with padding) and {options.max_new_tokens} new ones need {needed} "
                f"positions, and the model has learned {most}; shorten the prompt, or ask for fewer new tokens."
            )
            raise ArgumentError([Problem("prompts", text, row.number)])


def encoded(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> Iterator[tuple[str, list[int]]]:
    """Return every prompt as text and tokens.

    Raises:
        ArgumentError: a prompt is neither text nor tokens, has no token, or one outside the vocabulary.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        kind = "one text" if isinstance(prompts, str) else type(prompts).__name__
        raise ArgumentError([Problem("prompts", f"{kind} given ({prompts!r:.60}); a list of prompts is needed.")])
    for number, prompt in enumerate(prompts):
        yield _encoded_one(tokenizer, prompt, number)


def _encoded_one(tokenizer: Tokenizer, prompt: Prompt, number: int) -> tuple[str, list[int]]:
    def unfit(text: str) -> ArgumentError:
        return ArgumentError([Problem("prompts", text, number)])

    if isinstance(prompt, str):
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise unfit(
                f"{prompt!r:.60} is not text; give it in UTF-8 (a lone surrogate represents an undecodable byte)."
            )
        text, tokens = prompt, tokenizer.encode(prompt).ids.tolist()
    else:
        try:
            tokens = [operator.index(token) for token in prompt]
        except TypeError as error:
            raise unfit(f"{prompt!r:.60} given; a text or a list of tokens, whole numbers, is needed.") from error
        wrong = [token for token in tokens if not 0 <= token < tokenizer.vocabulary_size]
        if wrong:
            raise unfit(
                f"token {wrong[0]} given; the vocabulary has {tokenizer.vocabulary_size} entries, 0 to "
                f"{tokenizer.vocabulary_size - 1}."
            )
        text = tokenizer.decode(tokens)
    if not tokens:
        raise unfit(
            f"{prompt!r} has no token; give at least one, since the first new token is predicted from the prompt."
        )
    return text, tokens


def _stream_batches(decoder: "Decoding", rows: list[Row]) -> Iterator[Piece]:
    """Group rows of similar length: padding the shorter ones costs time and changes nothing else."""
    rows = sorted(rows, key=lambda row: len(row.tokens))
    first = 0
    while first < len(rows):
        batch = rows[first : first + decoder.options.batch_size]
        if not decoder.options.align:  # without padding only rows of one length can share their windows
            batch = [row for row in batch if len(row.tokens) == len(batch[0].tokens)]
        first += len(batch)
        yield from decoder.stream(batch)


class Decoding:
    """Decodes batches of rows with one model.

    Attributes:
        options: of the rows.
        retriever: is asked at the end of the next window; may be replaced at any time.
        narrow: whether the model computes in bfloat16, by autocast; logits are then of that type.
    """

    def __init__(
        self,
        model: RetrievalModel,
        tokenizer: Tokenizer,
        retriever: LiveRetriever | None,
        options: GenerationOptions,
        step: int,
        reading: Progress | None,
    ) -> None:
        self.options = options
        self._reading = reading
        self.retriever, self.narrow = retriever, False
        self._model, self._tokenizer, self._step = model, tokenizer, step
        self.device = device_of(model)

    def stream(self, rows: list[Row]) -> Iterator[Piece]:
        """Decode a batch until all its rows have ended."""
        options, module = self.options, self._model
        sampler = Sampler(
            options,
            [row.tokens for row in rows],
            [options.seed + row.number for row in rows],
            vocabulary_size=self._tokenizer.vocabulary_size,
            device=self.device,
        )
        was_training = isinstance(module, torch.nn.Module) and module.training
        if was_training:
            module.eval()  # type: ignore[attr-defined]  # an nn.Module, see above
        try:
            cache, tokens = self.start(rows)
            while True:
                logits = self.extend(rows, cache, tokens)
                chosen = sampler.choose(logits).tolist()
                for row, token in zip(rows, chosen, strict=True):
                    if row.is_running:
                        yield row.advance(token, self.options)
                running = [place for place, row in enumerate(rows) if row.is_running]
                if not running:
                    return
                if 2 * len(running) <= len(rows):  # keeping ended rows costs less than copying the cache for each
                    rows = [rows[place] for place in running]
                    kept = torch.tensor(running, device=self.device)
                    cache.select(kept)
                    sampler.select(running)
                tokens = torch.tensor([[row.tokens[-1]] for row in rows], device=self.device)  # [b, 1]
        finally:
            if was_training:
                module.train()  # type: ignore[attr-defined]

    def start(self, rows: list[Row]) -> tuple[Any, Tensor]:
        """Return the rows, aligned at the right of int64 [b, t], and their cache."""
        chunk_length = self._model.config.chunk_length
        for row in rows:
            length = len(row.tokens)
            row.padding = aligned_length(length, chunk_length, self._step) - length if self.options.align else 0
        length = max(len(row.tokens) + row.padding for row in rows)
        filler = self._tokenizer.end_of_text
        for row in rows:
            row.added_padding = length - len(row.tokens) - row.padding
        padded = [[filler] * (length - len(row.tokens)) + row.tokens for row in rows]
        paddings = [row.padding + row.added_padding for row in rows]
        # Without padding attention needs no mask, which is faster.
        padding = torch.tensor(paddings, device=self.device) if any(paddings) else None
        cache = self._model.new_cache(padding=padding, retrieval_step=self._step)
        return cache, torch.tensor(padded, device=self.device)

    @torch.inference_mode()
    def extend(self, rows: list[Row], cache: Any, tokens: Tensor) -> Tensor:
        """Process tokens int64 [b, t], with retrieval for every window they complete; return the last logits [b, v]."""
        logits = tokens.new_empty(0)
        for part in self.read(rows, cache, tokens):
            logits = part[:, -1]
        return logits

    @torch.inference_mode()
    def losses(self, row: Row) -> tuple[list[float], list[bool]]:
        """Return the nats of each token of a row but the first, and whether each is the likeliest."""
        nats, likeliest = list[float](), list[bool]()
        for logits, targets in self.predicted(row):
            nats += F.cross_entropy(logits, targets, reduction="none").tolist()
            likeliest += (logits.argmax(-1) == targets).tolist()
        return nats, likeliest

    @torch.inference_mode()
    def predicted(self, row: Row) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logits float [t, v] and the tokens int64 [t] that they predict, those of a row without its first."""
        cache, tokens = self.start([row])
        first = 1
        for logits in self.read([row], cache, tokens):
            targets = tokens[0, first : first + logits.shape[1]]
            first += logits.shape[1]
            yield logits[0, : len(targets)].float(), targets

    @torch.inference_mode()
    def losses_after(
        self, rows: list[Row], continuations: Sequence[tuple[int, Sequence[int]]]
    ) -> Iterator[tuple[Row, list[float], list[bool]]]:
        """Yield each continuation's row, the nats of its tokens, and whether each token is the likeliest.

        Args:
            rows: are processed once, aligned as prompts are.
            continuations: place among the rows, and at least one token.
        """
        cache, tokens = self.start(rows)
        last = tokens.new_empty(0)
        for logits in self.read(rows, cache, tokens):
            last = logits[:, -1:]
        chosen = torch.tensor([place for place, _ in continuations], device=self.device)
        rows = [rows[place].followed_by(continuation) for place, continuation in continuations]
        longest = max(len(continuation) for _, continuation in continuations)
        filler = self._tokenizer.end_of_text
        padded = [[*each, *[filler] * (longest - len(each))] for _, each in continuations]
        targets = torch.tensor(padded, device=self.device)  # [c, longest]
        cache.select(chosen)
        nats, likeliest, first = list[Tensor](), list[Tensor](), 0
        for logits in chain([last[chosen]], self.read(rows, cache, targets[:, :-1])):
            wanted = targets[:, first : first + logits.shape[1]]
            nats.append(F.cross_entropy(logits.float().mT, wanted, reduction="none"))
            likeliest.append(logits.argmax(-1) == wanted)
            first += logits.shape[1]
        of_rows = zip(torch.cat(nats, dim=1), torch.cat(likeliest, dim=1), strict=True)
        for row, (of_row, is_likeliest), (_, each) in zip(rows, of_rows, continuations, strict=True):
            yield row, of_row[: len(each)].tolist(), is_likeliest[: len(each)].tolist()

    def read(self, rows: list[Row], cache: Any, tokens: Tensor) -> Iterator[Tensor]:
        """Process tokens int64 [b, t] in parts, with retrieval for every window; yield logits [b, part, v]."""
        at_once = LOGITS_AT_ONCE // (len(rows) * self._model.config.vocabulary_size)
        at_once = max(1, min(at_once, TOKENS_AT_ONCE))
        is_prompt = cache.length == 0
        for first in range(0, tokens.shape[1], at_once):
            if self._reading is not None and is_prompt:
                self._reading(first, tokens.shape[1])
            part = tokens[:, first : first + at_once]
            retrieved, mask = self._retrieve(rows, cache.length, part.shape[1])
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.narrow):
                logits = self._model.extend(part, cache, retrieved, mask)
            yield logits

    def _retrieve(self, rows: list[Row], length: int, num_tokens: int) -> tuple[Tensor | None, Tensor | None]:
        """Look up the windows completed by `num_tokens` tokens after the first `length`, for unfinished rows.

        Returns:
            int64 and bool [b, w, k, r]; None twice if nothing is retrieved.
        """
        retriever = self.retriever
        if retriever is None:
            return None, None
        chunk_length, step = self._model.config.chunk_length, self._step
        first = num_windows(length, chunk_length, step)
        count = num_windows(length + num_tokens, chunk_length, step) - first
        places, queries = [], []
        for window in range(count):
            end = chunk_length + (first + window) * step
            for place, row in enumerate(rows):
                query = row.window(end, chunk_length) if row.is_running and row.retrieves else []
                if query:
                    places.append((place, window, row, end))
                    queries.append(query)
        if not queries:
            return None, None
        found = retrieve(retriever, queries, self.options.num_neighbours, self._model.config.retrieved_length)
        shape = (len(rows), count, *found.tokens.shape[1:])
        retrieved = torch.full(shape, self._tokenizer.end_of_text, dtype=torch.int64)
        mask = torch.zeros(shape, dtype=torch.bool)
        for number, (place, window, row, end) in enumerate(places):
            retrieved[place, window] = torch.from_numpy(found.tokens[number])
            mask[place, window] = torch.from_numpy(found.mask[number])
            text = self._tokenizer.decode(queries[number])
            row.retrievals.append(Retrieval(row.own_length(end), text, tuple(found.sources[number])))
        return retrieved.to(self.device), mask.to(self.device)


def device_of(model: RetrievalModel) -> torch.device:
    """Where a model is; the CPU if it has no weights."""
    if isinstance(model, torch.nn.Module):
        return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return torch.device("cpu")
