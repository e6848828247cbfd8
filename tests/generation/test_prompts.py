"""Prompts from words, files and standard input; messages in the words of the command line."""

import io
import sys
from pathlib import Path

import pytest

from retroflow.errors import GenerationError
from retroflow.generation import GenerationOptions
from retroflow.generation.arguments import ArgumentError, Problem
from retroflow.generation.prompts import PlacedPrompt, prompts_of_words, read_prompts, telling_in_flags


class Stdin:
    """Standard input that is a pipe, or a terminal."""

    closed = False

    def __init__(self, content: bytes, *, terminal: bool = False) -> None:
        self.buffer, self._terminal = io.BytesIO(content), terminal

    def isatty(self) -> bool:
        return self._terminal


def texts(file: Path | str) -> list[str]:
    return [prompt.text for prompt in read_prompts(str(file))]


def test_lines_are_prompts(tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes("\ufefffirst\n  second \r\nthird\u2028\x0c! \n \n\n".encode())
    assert texts(file) == ["first", "  second ", "third\u2028\x0c! "]
    assert [prompt.where for prompt in read_prompts(str(file))] == [f"{file}:{line}" for line in (1, 2, 3)]


@pytest.mark.parametrize("name", ["p.jsonl", "p.JSONL", "p.json", "p.txt", "63", "p.ndjson"])
def test_json_lines_are_known_by_their_content(tmp_path, name):
    file = tmp_path / name
    file.write_text('{"prompt": "one\\ntwo", "id": 3}\n{"prompt": "x\u2028y"}\n', encoding="utf-8")
    assert texts(file) == ["one\ntwo", "x\u2028y"]


def test_text_that_only_looks_like_json_is_text(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text('{ int x;\n"prompt"\n[{"prompt": "a"}]\n')
    assert texts(file) == ["{ int x;", '"prompt"', '[{"prompt": "a"}]']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"\n \n", "has no prompt; write one on every line"),
        ("p.txt", b"\xff\xfe", "cannot be read .*give UTF-8 text"),
        (
            "p.jsonl",
            b'{"prompt": "a"}\n{"text": "b"}',
            r'p.jsonl:2: not a JSON object with "prompt" \(it has no "prompt"\)',
        ),
        ("p.txt", b'{"prompt": "a"}\nb', r'p.txt:2: not a JSON object with "prompt" \(Expecting value'),
        ("p.txt", b'{"text": "a"}\n', r'p.txt:1: .*\(it has no "prompt"\)'),
        ("p.txt", b'a\n{"prompt": "b"}\n', r'p.txt:2: a JSON object with "prompt", but line 1 is plain text'),
        ("p.jsonl", b"[1]", r'p.jsonl:1: not a JSON object with "prompt" \(it is not an object\)'),
        ("p.JSON", b"{", r"p.JSON:1: not a JSON object"),
        ("p.jsonl", b'{"prompt": 3}', r'p.jsonl:1: "prompt" is 3; a text'),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": ""}', r'p.jsonl:2: "prompt" is ""'),
        ("p.jsonl", b'{"prompt": "a", "prompt": "b"}', r'p.jsonl:1: .*"prompt" is given twice'),
        ("p.jsonl", b'{"prompt": "a", "x": NaN}', r"p.jsonl:1: .*NaN is not JSON"),
        ("p.txt", b"a\n\nb\n", r"p.txt:2: the line is blank; delete it, or write a prompt"),
        ("p.jsonl", b'\n{"prompt": "a"}', "p.jsonl:1: the line is blank"),
    ],
)
def test_files_that_hold_no_prompts_are_told(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GenerationError, match=message):
        read_prompts(str(tmp_path / name))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(GenerationError, match=r"--prompts-file .*none.txt: cannot be read \(No such file"):
        read_prompts(str(tmp_path / "none.txt"))


def test_words_are_prompts_and_a_dash_is_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stdin(b"two\nlines\n\n"))
    assert prompts_of_words(["a"]) == [PlacedPrompt("a", "--prompt")]
    assert prompts_of_words(["a", "-"]) == [
        PlacedPrompt("a", "--prompt (number 1)"),
        PlacedPrompt("two\nlines\n", "--prompt -"),
    ]


def test_many_prompts_come_from_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stdin(b'{"prompt": "a"}\n{"prompt": "b"}\n'))
    assert read_prompts("-") == [PlacedPrompt("a", "standard input:1"), PlacedPrompt("b", "standard input:2")]


def test_a_terminal_is_told_how_to_end(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Stdin(b"typed\n", terminal=True))
    assert prompts_of_words(["-"])[0].text == "typed"
    assert "end it with Ctrl-D" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stdin", "words", "message"),
    [
        (Stdin(b"\n"), ["-"], "--prompt -: standard input holds no text"),
        (Stdin(b"a"), ["-", "-"], "--prompt -: given 2 times; standard input can be read once"),
        (Stdin(b"\xff"), ["-"], "--prompt -: cannot be read .*give UTF-8 text"),
        (None, ["-"], "--prompt -: standard input is closed"),
    ],
)
def test_standard_input_that_holds_no_prompt_is_told(monkeypatch, stdin, words, message):
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(GenerationError, match=message):
        prompts_of_words(words)


def test_errors_name_arguments_to_python_and_flags_to_the_command_line():
    with pytest.raises(ArgumentError, match=r"^max_new_tokens is 0; .*\nnum_neighbours is 0; "):
        GenerationOptions(max_new_tokens=0, num_neighbours=0)
    with pytest.raises(ArgumentError, match=r"^--max-new-tokens is 0; .*\n--neighbours is 0; "):
        with telling_in_flags([]):
            GenerationOptions(max_new_tokens=0, num_neighbours=0)
    with pytest.raises(ArgumentError, match="^temperature is nan; "):
        GenerationOptions(temperature=float("nan"))


def test_errors_name_where_a_prompt_was_given():
    error = ArgumentError([Problem("prompts", "'' has no token", row=1)])
    assert str(error) == "prompts[1]: '' has no token"
    with pytest.raises(ArgumentError, match="^p.txt:2: '' has no token$"):
        with telling_in_flags([PlacedPrompt("a", "p.txt:1"), PlacedPrompt("", "p.txt:2")]):
            raise error
