"""A schema of made-up components in a module that cannot be imported, so that a test sees source reading alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from retroflow.recipe import Recipe, RecipeSchema, Section, Slot, load
from retroflow.registry import Entry, Registry

SOURCE = """
import library_that_nobody_has
from dataclasses import dataclass, field
from typing import Literal

DEFAULT_DEPTH = 3
Speed = Literal["slow", "fast"]

@dataclass(frozen=True, kw_only=True)
class Build:
    factory: str = "auto"
    sample: int = 0

class Oak:
    def __init__(self, *, build: Build | None = None, leaves: int = 5, ratio: float = 0.5, tags: list[str] = [],
                 speed: Speed = "slow", depth: int = DEFAULT_DEPTH, _client: object = None) -> None: ...

class Elm:
    def __init__(self, *, path: str, split: tuple[int, float] = (1, 2.0), weights: dict[str, float] | None = None,
                 either: int | str = 0, on: bool = False) -> None: ...

@dataclass(frozen=True, kw_only=True)
class Options:
    steps: int = 10
    rate: float = 0.1
    folder: str = "runs"
    layers: tuple[int, ...] = (1, 2)
    many: list[int] = field(default_factory=lambda: [4, 5])
"""

Load = Callable[..., Recipe]


def make_schema() -> RecipeSchema:
    trees = Registry("tree", None, {"oak": Entry("unimportable_parts:Oak"), "elm": Entry("unimportable_parts:Elm")})
    return RecipeSchema(
        {"tree": Slot(trees, derived={"height": "run.steps"}), "run": Section("parts_sections:Options")}
    )


@pytest.fixture
def load_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return load_text(yaml, *overrides): write r.yaml into the current folder and load it."""
    (tmp_path / "unimportable_parts.py").write_text(SOURCE)
    (tmp_path / "parts_sections.py").write_text(SOURCE.replace("import library_that_nobody_has", ""))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def load_it(text: str | bytes, *overrides: str) -> Recipe:
        Path("r.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return load(Path("r.yaml"), overrides, schema=make_schema())

    return load_it
