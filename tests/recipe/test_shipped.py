"""Recipes travel with the package, and are named by one word."""

from pathlib import Path

import pytest

from retroflow.cli.main import run
from retroflow.components import recipe_schema
from retroflow.errors import UsageError
from retroflow.recipe import load
from retroflow.recipe.shipped import copy_recipe, find_recipe, shipped_recipes
from tests.house.tree import ROOT


def test_the_installed_recipes_are_those_of_the_checkout() -> None:
    here = {path.stem: path.read_bytes() for path in (ROOT / "recipes").glob("*.yaml")}
    assert {name: path.read_bytes() for name, path in shipped_recipes().items()} == here and "retro_small" in here


def test_a_name_is_found_in_an_empty_folder_and_a_path_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load("retro_small", [], schema=recipe_schema())
    assert recipe.name == "retro_small"
    assert load("stdlib", [], schema=recipe_schema()).values["trainer"]["max_steps"] == 200  # which extends another
    (tmp_path / "stdlib").write_text("mine")
    assert find_recipe("stdlib") == Path("stdlib")
    with pytest.raises(UsageError, match=r'no recipe of that name is installed\. Did you mean "retro_small"\?'):
        find_recipe("retro_smal")


def test_every_recipe_can_be_copied_and_still_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in shipped_recipes():
        (tmp_path / name).mkdir()
        written = copy_recipe(name, tmp_path / name)
        assert written[0] == tmp_path / name / f"{name}.yaml"
    load(tmp_path / "stdlib" / "stdlib.yaml", [], schema=recipe_schema())
    with pytest.raises(UsageError, match="exists already"):
        copy_recipe("stdlib", tmp_path / "stdlib")
    with pytest.raises(UsageError, match="there is no folder"):
        copy_recipe("stdlib", tmp_path / "nowhere" / "mine.yaml")
    assert run(["recipe", "copy", "retro_small", "mine.yaml"]) == 0
    assert capsys.readouterr().out == "mine.yaml\n" and (tmp_path / "mine.yaml").exists()


def test_the_list_says_what_each_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(shipped_recipes())
    assert all(len(line.split()) > 4 for line in lines)
