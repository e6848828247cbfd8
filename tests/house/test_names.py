"""Words that are not used: names that say nothing, American spelling of the paper's word, places on one machine."""

import ast
import re
from collections.abc import Iterator

from tests.house.tree import ROOT, library, parse, relative, texts

EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "base", "core"}
EMPTY_ENDINGS = ("Manager", "Handler", "Helper", "Processor", "Wrapper")
AMERICAN = "neigh" + "bor"
# Names in other people's interfaces, which we cannot spell: scann's and scikit-learn's arguments, URLs and titles.
FOREIGN = re.compile(
    rf"num_{AMERICAN}s|nb?_{AMERICAN}s|Nearest{AMERICAN.title()}|sklearn\.{AMERICAN}s|[\"`]{AMERICAN}s[\"`]|https?://\S+"
)
ABSOLUTE = re.compile(r"(?<![\w.~}/-])/(?:home|root|Users|work|workspace|mnt|scratch|tmp|data)/[\w.]")


def test_files_are_named_after_what_they_are() -> None:
    parts = {part.removesuffix(".py") for path in library() for part in path.relative_to(ROOT).parts}
    assert not EMPTY_NAMES & parts


def test_classes_are_named_after_what_they_are() -> None:
    classes = [node.name for path in library() for node in ast.walk(parse(path)) if isinstance(node, ast.ClassDef)]
    assert not [name for name in classes if name.endswith(EMPTY_ENDINGS)]


def test_neighbour_is_spelt_as_in_the_paper() -> None:
    assert not [place for place, line in _lines() if AMERICAN in FOREIGN.sub("", line).lower()]


def test_no_path_of_one_machine_is_named() -> None:
    assert not [f"{place}: {line.strip()}" for place, line in _lines() if ABSOLUTE.search(line)]


def test_library_code_is_ascii() -> None:
    assert not [relative(path) for path in library() if not path.read_text(encoding="utf-8").isascii()]


def test_constraints_are_plain_pins() -> None:
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line


def _lines() -> Iterator[tuple[str, str]]:
    """Yield every line of the repository with its place."""
    for path in texts():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            yield f"{relative(path)}:{number}", line
