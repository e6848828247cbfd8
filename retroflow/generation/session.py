"""What a person asks for at the terminal: prompts from a line or a file, and how answers and sources are shown."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retroflow.errors import GenerationError
from retroflow.generation.retrieved import Retrieval
from retroflow.generation.rows import Generation, Piece

SHOWN_CHARACTERS = 240


def read_prompts(file: Path) -> list[str]:
    """Read prompts: of a .jsonl file the "prompt" of every line, of another file every line; prompt i is of line i.

    Blank lines at the end are left out. A line ends with a line feed alone: other characters that Python takes for
    line ends, such as U+2028, may stand in a JSON text.

    Raises:
        GenerationError: the file cannot be read, has no prompt, or a line is not what it ought to be.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise GenerationError(f"--prompts-file {file}: cannot be read ({reason}); give a UTF-8 text file.") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise GenerationError(f"--prompts-file {file}: has no prompt; write one on every line.")
    blank = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if blank:
        raise GenerationError(
            f"{file}:{blank[0]}: a blank line, where a prompt is needed: answers are in the order of the lines. Delete "
            "it, or write a prompt there."
        )
    if file.suffix == ".jsonl":
        return [_prompt_of(line, f"{file}:{number}") for number, line in enumerate(lines, start=1)]
    return lines


def _prompt_of(line: str, where: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GenerationError(
            f'{where}: not a JSON object with "prompt" ({type(error).__name__}: {error}); write {{"prompt": "..."}}.'
        ) from error
    if not isinstance(prompt, str) or not prompt:
        raise GenerationError(f'{where}: "prompt" is {json.dumps(prompt)}; a text of at least one character is needed.')
    return prompt


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
