"""How answers and their sources are shown at a terminal."""

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
"""A prompt of so many times the sequence length of training gets a note."""

FIRST_SECONDS, LINE_SECONDS = 2.0, 5.0
"""When the first line about a prompt that is being read comes, and how far apart the others are."""


def notes_on_length(prompts: Sequence[PlacedPrompt], tokenizer: Tokenizer, sequence_length: int) -> Iterator[str]:
    """Say which prompts are much longer than anything the model was trained on.

    Args:
        prompts: what is to be continued.
        tokenizer: the model's.
        sequence_length: tokens of a training sequence.
    """
    most = MUCH_LONGER * sequence_length
    for prompt in prompts:
        if len(prompt.text.encode("utf-8", "surrogateescape")) <= most:  # a token has a byte at least
            continue
        length = len(tokenizer.encode(prompt.text).ids)
        if length > most:
            yield (
                f"{prompt.where}: {length:,} tokens, {length / sequence_length:,.0f} times the {sequence_length:,} "
                "that the model was trained on at once: it may make little of them, and the time to read them grows "
                "with the square of their number"
            )


class ReadingLines:
    """Lines about a prompt that takes long to read, with the time left.

    A part of a prompt costs c + d * (tokens before it) a token: c and d are taken from its first and its last part.

    Args:
        say: told every line.
        clock: seconds.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._read, self._then, self._next = 0, 0.0, 0.0
        self._first: tuple[float, float] | None = None  # middle of the first part, seconds a token there

    def __call__(self, read: int, total: int) -> None:
        """Take note that `read` of `total` tokens are read; 0 begins with other prompts."""
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
    """Give out pieces prompt after prompt; those of a prompt whose turn has not come are kept until it does."""
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
    """A generation as JSON values."""
    return asdict(generation) | {"tokens": list(generation.tokens)}


def describe_sources(generation: Generation, metric: str) -> str:
    """Every chunk that was read, by the retrieval that found it: score, document, text.

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
    "l2": "minus the squared distance, 0 is an equal embedding",
    "inner_product": "inner product",
    "own": "the retriever's own, higher is better",
}


def _retrieval_lines(retrieval: Retrieval) -> list[str]:
    lines = [f"  after {retrieval.end} tokens, for: {_shortened(retrieval.query)}"]
    for source in retrieval.sources:
        place = ", ".join(dict.fromkeys(part for part in (source.title, source.document, source.source) if part))
        lines += [f"    {source.score:.4f}  {place}", f"      {_shortened(source.text)}"]
    return lines


def _shortened(text: str, most: int = SHOWN_CHARACTERS) -> str:
    """A text on one line, its control characters made visible, cut at `most` characters."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[:most])
    return shown + ("..." if len(text) > most else "")
