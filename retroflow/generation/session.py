"""How answers and their sources are shown at a terminal."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from retroflow.generation.retrieved import Retrieval
from retroflow.generation.rows import Generation, Piece

SHOWN_CHARACTERS = 240


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
        metric: what scores mean, "l2" or "inner_product".
    """
    lines = [f"sources of prompt {generation.number + 1} (score: {_METRICS.get(metric, metric)})"]
    for retrieval in generation.retrievals:
        lines += _retrieval_lines(retrieval)
    if not generation.sources:
        lines.append("  nothing was retrieved")
    return "\n".join(lines)


_METRICS = {"l2": "minus the squared distance, 0 is an equal embedding", "inner_product": "inner product"}


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
