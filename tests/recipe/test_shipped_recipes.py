"""Every recipe in recipes/ binds: it checks clean and says what it costs."""

import re
from pathlib import Path

import pytest

from retroflow.components import recipe_schema
from retroflow.recipe import load

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))


def test_there_are_few_recipes() -> None:
    assert 1 <= len(RECIPES) < 12


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_checks_clean_and_its_resolved_form_loads_to_the_same_values(path: Path, tmp_path: Path) -> None:
    recipe = load(path, [], schema=recipe_schema())
    stored = tmp_path / path.name
    stored.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load(stored, [], schema=recipe_schema()).values == recipe.values


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_starts_with_a_comment_that_dates_its_figures(path: Path) -> None:
    head = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))
    assert head, "a recipe begins with hardware, time, expected numbers and the date they were measured"
    assert re.search(r"20\d\d-\d\d-\d\d", head.group()), "the head says when its figures were measured"


@pytest.mark.parametrize("name", ["exact", "faiss", "scann", "hnsw"])
def test_every_retriever_is_one_override_away(name: str) -> None:
    recipe = load(FOLDER / "retro_small.yaml", [f"retriever.name={name}"], schema=recipe_schema())
    assert recipe.values["retriever"]["name"] == name


def test_every_built_in_component_has_options_that_can_be_read() -> None:
    from retroflow.components import KINDS
    from retroflow.recipe.signatures import read_block

    for registry in KINDS:
        for name in registry.names():
            entry = registry.entry(name)
            read_block(entry.target, entry.owner)
