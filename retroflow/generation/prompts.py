"""Prompts from a terminal: words of the command line, files, standard input."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroflow.errors import GenerationError
from retroflow.generation.arguments import ArgumentError, Problem

STDIN = "-"
"""Means standard input in place of a prompt or a file."""

JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
"""Files with these endings must hold JSON lines; in others the first line decides."""


@dataclass(frozen=True)
class PlacedPrompt:
    """A prompt and its place: "--prompt", "questions.txt:3"."""

    text: str
    where: str


def prompts_of_words(words: Sequence[str], name: str = "--prompt") -> list[PlacedPrompt]:
    """Turn the texts of --prompt into prompts; "-" is all of standard input.

    One line end at the end of standard input is removed, because `echo` adds it.

    Args:
        words: the texts.
        name: what errors call them.

    Raises:
        GenerationError: standard input is used twice, is empty, or is not UTF-8 text.
    """
    if words.count(STDIN) > 1:
        raise GenerationError(f"{name} {STDIN}: given {words.count(STDIN)} times; standard input can be read once.")
    many = len(words) > 1
    prompts = []
    for number, word in enumerate(words, start=1):
        where = f"{name} (number {number})" if many else name
        if word == STDIN:
            where = f"{name} {STDIN}"
            word = _decoded(_read_stdin(where), where).removesuffix("\n").removesuffix("\r")
            if not word:
                raise GenerationError(f"{where}: standard input holds no text; pipe the text into this command.")
        prompts.append(PlacedPrompt(word, where))
    return prompts


def read_prompts(file: str) -> list[PlacedPrompt]:
    """Read prompts from a file, or from standard input if it is "-".

    The content decides: if the first line that is not blank is a JSON object, every line must be one, and its "prompt"
    is the prompt. Otherwise every line is a prompt. Files that end in .json, .jsonl or .ndjson must hold JSON lines.
    Blank lines at the end are ignored. Only a line feed ends a line: other line ends of Python, such as U+2028, may be
    part of a JSON text.

    Raises:
        GenerationError: the file cannot be read, has no prompt, or a line is wrong.
    """
    where = f"--prompts-file {file}"
    text = _decoded(_read_stdin(where) if file == STDIN else _read_file(Path(file), where), where)
    lines = text.replace("\r\n", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise GenerationError(f"{where}: has no prompt; write one on every line.")
    name = "standard input" if file == STDIN else file
    placed = [PlacedPrompt(line, f"{name}:{number}") for number, line in enumerate(lines, start=1)]
    blank = next((prompt for prompt in placed if not prompt.text.strip()), None)
    if blank is not None:
        raise GenerationError(f"{blank.where}: the line is blank; delete it, or write a prompt there.")
    if file.lower().endswith(JSON_ENDINGS) or _json_object(lines[0]) is not None:
        return [PlacedPrompt(_prompt_of(prompt), prompt.where) for prompt in placed]
    for prompt in placed:
        if "prompt" in (_json_object(prompt.text) or {}):
            raise GenerationError(
                f'{prompt.where}: a JSON object with "prompt", but line 1 is plain text; use one form for all lines.'
            )
    return placed


@contextmanager
def telling_in_flags(prompts: Sequence[PlacedPrompt]) -> Iterator[None]:
    """Show flags and lines of files in errors about arguments, as typed on the command line."""

    def name_of(problem: Problem) -> str:
        if problem.argument == "prompts" and problem.row is not None:
            return prompts[problem.row].where
        return _FLAGS.get(problem.argument, "--" + problem.argument.replace("_", "-"))

    try:
        yield
    except ArgumentError as error:
        raise error.renamed(name_of) from error


_FLAGS = {
    "num_neighbours": "--neighbours",
    "retrieval": "--no-retrieval",
    "text": "TEXT",
    "stop_at_end_of_text": "--ignore-end-of-text",
}


def _read_file(file: Path, where: str) -> bytes:
    try:
        return file.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise GenerationError(f"{where}: cannot be read ({reason}); give a UTF-8 text file.") from error


def _read_stdin(where: str) -> bytes:
    if sys.stdin is None or sys.stdin.closed:
        raise GenerationError(f"{where}: standard input is closed; pipe text into this command.")
    if sys.stdin.isatty():
        print(f"{where}: write or paste the text, and end it with Ctrl-D on a line of its own", file=sys.stderr)
    stream = getattr(sys.stdin, "buffer", None)
    return stream.read() if stream is not None else sys.stdin.read().encode("utf-8", "surrogateescape")


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GenerationError(f"{where}: cannot be read ({error}); give UTF-8 text.") from error


def _json_object(line: str) -> dict[str, Any] | None:
    """Return the JSON object of a line; None for anything else, such as text that begins with a brace."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _prompt_of(line: PlacedPrompt) -> str:
    try:
        values = json.loads(line.text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
        if "prompt" not in values:
            raise ValueError('it has no "prompt"')
    except (ValueError, RecursionError) as error:
        raise GenerationError(
            f'{line.where}: not a JSON object with "prompt" ({error}); write {{"prompt": "..."}} on every line.'
        ) from error
    prompt = values["prompt"]
    if not isinstance(prompt, str) or not prompt:
        raise GenerationError(
            f'{line.where}: "prompt" is {json.dumps(prompt)}; a text of at least one character is needed.'
        )
    return prompt


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'"{next(name for name in names if names.count(name) > 1)}" is given twice')
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
