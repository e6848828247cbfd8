"""Output of generations and their sources on a terminal."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.generation.prompts import PlacedPrompt
from retroflow.generation.retrieved import Retrieval
from retroflow.generation.rows import Generation, Piece

SHOWN_CHARACTERS = 240

MUCH_LONGER = 4
"""A prompt of more than this many times the training length gets a note."""

FIRST_SECONDS, LINE_SECONDS = 2.0, 5.0
"""Delay of the first line about processing a prompt, and interval of the others."""


def notes_on_length(prompts: Sequence[PlacedPrompt], tokenizer: Tokenizer, sequence_length: int) -> Iterator[str]:
    """Return notes on prompts that are much longer than the model's training sequences.

    Args:
        prompts: the prompts.
        tokenizer: the model's.
        sequence_length: tokens of a training sequence.
    """
    most = MUCH_LONGER * sequence_length
    for prompt in prompts:
        if len(prompt.text.encode("utf-8", "surrogateescape")) <= most:  # a token has at least one byte
            continue
        length = len(tokenizer.encode(prompt.text).ids)
        if length > most:
            yield (
                f"{prompt.where}: {length:,} tokens, {length / sequence_length:,.0f} times the {sequence_length:,} "
                "of a training sequence; the answer may be poor, and the time grows with the square of the length"
            )


class ReadingLines:
    """Progress lines for a long prompt, with the time left.

    A part of a prompt costs c + d * (tokens before it) per token; c and d come from its first and its last part.

    Args:
        say: called with every line.
        clock: seconds.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._read, self._then, self._next = 0, 0.0, 0.0
        self._first: tuple[float, float] | None = None  # middle of the first part, seconds per token there

    def __call__(self, read: int, total: int) -> None:
        """Record that `read` of `total` tokens are processed; 0 begins a new batch of prompts."""
        now = self._clock()
        if not read:
            self._read, self._then, self._next, self._first = 0, now, now + FIRST_SECONDS, None
            return
        middle, cost = (read + self._read) / 2, (now - self._then) / (read - self._read)
        first_middle, first_cost = self._first = self._first or (middle, cost)
        self._read, self._then = read, now
        if now < self._next:
            return
        self._next = now + LINE_SECONDS
        slope = max(0.0, (cost - first_cost) / (middle - first_middle)) if middle > first_middle else 0.0
        left = (total - read) * (cost + slope * ((total + read) / 2 - middle))
        self._say(f"reading the prompt: {read:,} of {total:,} tokens, about {left:,.0f} s left")


def in_turn(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces of one prompt after another; those of later prompts are kept until it is their turn."""
    turn = 0
    waiting: dict[int, list[Piece]] = {}
    for piece in pieces:
        waiting.setdefault(piece.number, []).append(piece)
        while turn in waiting:
            held = waiting.pop(turn)
            yield from held
            if held[-1].generation is None:
                break
            turn += 1


def to_json(generation: Generation) -> dict[str, Any]:
    """Return a generation as JSON values."""
    return asdict(generation) | {"tokens": list(generation.tokens)}


def describe_sources(generation: Generation, metric: str) -> str:
    """Return a description of every retrieved chunk, by retrieval: score, document, text.

    Args:
        generation: with its retrievals.
        metric: what scores mean, as in `Capabilities.metric`.
    """
    lines = [f"sources of prompt {generation.number + 1} (score: {_METRICS.get(metric, metric)})"]
    for retrieval in generation.retrievals:
        lines += _retrieval_lines(retrieval)
    if not generation.sources:
        lines.append("  nothing was retrieved")
    return "\n".join(lines)


_METRICS = {
    "l2": "minus the squared distance; 0 means equal embeddings",
    "inner_product": "inner product",
    "own": "the retriever's own, higher is better",
}


def _retrieval_lines(retrieval: Retrieval) -> list[str]:
    lines = [f"  after {retrieval.end} tokens, for: {_shortened(retrieval.query)}"]
    for source in retrieval.sources:
        place = ", ".join(dict.fromkeys(part for part in (source.title, source.document, source.source) if part))
        lines += [f"    {source.score:.4f}  {_printable(place)}", f"      {_shortened(source.text)}"]
    return lines


def _shortened(text: str, most: int = SHOWN_CHARACTERS) -> str:
    """Return a text on one line, with visible control characters, cut at `most` characters."""
    return _printable(text[:most]) + ("..." if len(text) > most else "")


def _printable(text: str) -> str:
    """Return a text whose control characters are visible: a corpus is not to command the terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
