"""`recipe check` finds every wrong value that a constructor would, and no other: random values through both."""

import importlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from retroflow import components
from retroflow.errors import UsageError
from retroflow.recipe import Slot, load
from retroflow.recipe.signatures import read_block

RECIPE = """\
recipe_version: 1
corpus: {name: python_source, packages: [json]}
embedder: {name: lexical}
retriever: {name: exact}
model: {name: retro}
"""
VALUES = [
    -1,
    0,
    1,
    2,
    3,
    7,
    2**63,
    -0.5,
    0.0,
    0.5,
    1.0,
    3.5,
    True,
    False,
    None,
    "",
    "x",
    "auto",
    "rotary",
    [],
    [1],
    [2, 2],
    ["x"],
    [[1]],
    {},
]
NEEDED = {"base": "gpt2", "vocabulary_size": 8192, "chunk_length": 64}


def targets() -> list[tuple[str, str, str]]:
    """Section, component and class of all that is constructed while a recipe is checked."""
    found = []
    for name, section in components.recipe_schema().sections.items():
        if isinstance(section, Slot):
            entries = section.registry._builtin.items()
            found += [(name, component, entry.target) for component, entry in entries if entry.light]
        else:
            found.append((name, "", section.target))
    return found


@pytest.mark.parametrize(("section", "component", "target"), targets(), ids=lambda part: part.rpartition(":")[2])
def test_a_recipe_and_a_constructor_refuse_the_same_values(
    section: str, component: str, target: str, tmp_path: Path
) -> None:
    module, _, name = target.partition(":")
    made: Any = getattr(importlib.import_module(module), name)
    options = read_block(target, "retroflow").options
    needed = {key: value for key, value in NEEDED.items() if key in options and section == "model"}
    dice = random.Random(f"{section} {component}")
    schema = components.recipe_schema()
    (tmp_path / "r.yaml").write_text(RECIPE)
    outcomes = set()
    for turn in range(400):
        if turn >= 40 and len(outcomes) == 2:
            break
        keys = dice.sample(sorted(set(options) - set(NEEDED)), k=dice.choice([1, 1, 2]))
        values = {key: dice.choice(VALUES) for key in keys}
        words = [f"{section}.name={component}"] if component and component not in RECIPE else []
        words += [f"{section}.base=gpt2"] if "base" in needed else []
        words += [f"{section}.{key}={json.dumps(value)}" for key, value in values.items()]
        by_python = by_recipe = ""
        try:
            made(**({"packages": ["json"]} if component == "python_source" else {}) | needed | values)
        except UsageError as error:
            by_python = str(error)
        try:
            load(tmp_path / "r.yaml", words, schema=schema)
        except UsageError as error:
            by_recipe = str(error)
        assert bool(by_python) == bool(by_recipe), (values, by_python, by_recipe)
        assert all(line.split(" Write ")[0] in by_recipe for line in by_python.splitlines()), (by_python, by_recipe)
        outcomes.add(bool(by_python))
    assert outcomes == {True, False}
