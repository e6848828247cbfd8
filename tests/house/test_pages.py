"""The guides are easy to read: lines that fit, short sentences, links that lead somewhere, code that exists."""

import ast
import re

import pytest

from tests.house.tree import ROOT

GUIDES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
GUIDES = [path for path in GUIDES if path.name != "log.md"]  # history stays as it was written
pages = pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
OTHERS = sorted([*(ROOT / "docs").glob("*/*.md"), *(ROOT / "plugins").glob("*/README.md"), ROOT / "docs" / "log.md"])


def prose(text: str) -> str:
    """The page without code and tables."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line for line in text.splitlines() if not line.startswith(("|", "#")))


@pages
def test_lines_fit_the_screen(path) -> None:
    assert not [line for line in prose(path.read_text(encoding="utf-8")).splitlines() if len(line) > 120]


@pages
def test_sentences_are_short(path) -> None:
    """On average; a long one here and there is fine."""
    text = re.sub(r"`[^`]*`", "code", prose(path.read_text(encoding="utf-8")))
    text = re.sub(r"\]\([^)]*\)", "]", text)
    items = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s)", text)
    lengths = [len(words) for item in items for part in re.split(r"(?<=[.!?:])\s", item) if (words := part.split())]
    assert sum(lengths) / max(1, len(lengths)) < 18


@pytest.mark.parametrize("path", [*GUIDES, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path) -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", path.read_text(encoding="utf-8")):
        page = path.parent / target if target else path
        assert page.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], anchor


@pages
def test_named_functions_exist(path) -> None:
    """`training/fit.py::train` on a page is in that file."""
    for file, name in re.findall(r"`(?:retroflow/)?([\w/]+\.py)::([\w.]+)", path.read_text(encoding="utf-8")):
        source = next(where for where in (ROOT / "retroflow" / file, ROOT / file) if where.exists())
        kinds = (ast.FunctionDef, ast.ClassDef)
        defined = {node.name for node in ast.walk(ast.parse(source.read_text("utf-8"))) if isinstance(node, kinds)}
        assert name.split(".")[-1] in defined, f"{file}::{name}"
