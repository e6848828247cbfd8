"""The schema that editors read says what `recipe check` says, and the tables of the docs say the same."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from retroflow import components
from retroflow.cli.main import run
from retroflow.recipe import Slot
from retroflow.recipe.json_schema import json_schema
from retroflow.recipe.shipped import shipped_recipes
from tests.house.tree import ROOT

SCHEMA = json_schema(components.recipe_schema())
RECIPE = """\
recipe_version: 1
corpus: {name: jsonl, path: a.jsonl}
embedder: {name: lexical}
retriever: {name: faiss, build: {factory: Flat}, search: {nprobe: 3}}
model: {name: retro, width: "${neighbours.k}"}
trainer: {max_steps: 5, runs_folder: "${data.artifacts_folder}/runs", final_sequences: null}
"""


def problems(text: str, schema: dict[str, Any] = SCHEMA) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(yaml.safe_load(text))]


def test_it_is_a_valid_schema() -> None:
    pytest.importorskip("jsonschema").Draft202012Validator.check_schema(SCHEMA)


def test_every_section_component_and_option_is_in_it_with_a_description() -> None:
    for name, section in components.recipe_schema().sections.items():
        found = SCHEMA["properties"][name]
        if not isinstance(section, Slot):
            assert all(option["description"] for option in found["properties"].values())
            continue
        cases = {case["if"]["properties"]["name"]["const"]: case["then"] for case in found["allOf"][:-1]}
        assert [one["const"] for one in found["properties"]["name"]["oneOf"]] == section.registry.names() == list(cases)
        for component in section.registry._builtin:
            assert cases[component]["additionalProperties"] is False
            options = {key: one for key, one in cases[component]["properties"].items() if key != "name"}
            assert not [key for key, one in options.items() if "properties" not in str(one) and not one["description"]]
            assert not set(section.derived) & set(options)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid(name: str) -> None:
    assert not problems(shipped_recipes()[name].read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid(path: Path) -> None:
    assert not problems(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("given", "instead", "part"),
    [
        ("recipe_version: 1\n", "", "recipe_version"),
        ("recipe_version: 1", "recipe_version: 2", "1 was expected"),
        ("max_steps: 5", "max_steps: -1", "is not valid under any"),
        ("max_steps: 5", "max_steps: '5'", "is not valid under any"),
        ("max_steps: 5", "max_stepz: 5", "max_stepz"),
        ("nprobe: 3", "nprobe: 0", "not valid under any"),
        ("nprobe: 3", "ef: 3", "not valid under any"),
        ("name: faiss", "name: exact", "not valid under any"),
        ("name: faiss", "name: fais", "fais"),
        ("path: a.jsonl", "text_key: a", "path"),
        ("path: a.jsonl", "path: ''", "not valid"),
        ("name: retro", "name: retro, chunk_length: 8", "chunk_length"),
        ("name: retro", "name: retro, positions: x", "not valid under any"),
        ("name: retro", "name: retro, cca_layers: [0]", "not valid under any"),
        ("name: retro", "name: retro, dropout: 1", "not valid under any"),
        ("model: {", "extra: {", "extra"),
        ('model: {name: retro, width: "${neighbours.k}"}\n', "", "model"),
        ("name: jsonl, ", "", "name"),
    ],
)
def test_a_wrong_recipe_is_not(given: str, instead: str, part: str) -> None:
    assert not problems(RECIPE)
    assert given in RECIPE
    assert part in " ".join(problems(RECIPE.replace(given, instead, 1)))


def test_a_recipe_that_extends_another_may_leave_everything_out() -> None:
    assert not problems("extends: a.yaml\ncorpus: {path: b}\nretriever: {search: {nprobe: 8}}\n")
    assert problems("extends: a.yaml\ncorpus: {pth: b}\n")
    assert problems("extends: a.yaml\nretriever: {name: faiss, search: {nprobe: 0}}\n")


def test_the_command_prints_it_for_all_components_or_for_those_of_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["recipe", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA
    (tmp_path / "r.yaml").write_text(RECIPE.replace('"${neighbours.k}"', "128"))
    assert run(["recipe", "schema", "--recipe", str(tmp_path / "r.yaml")]) == 0
    narrow = json.loads(capsys.readouterr().out)
    assert [one["const"] for one in narrow["properties"]["retriever"]["properties"]["name"]["oneOf"]] == ["faiss"]
    assert not problems(RECIPE, narrow)
    assert problems(RECIPE.replace("name: lexical", "name: bert"), narrow)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_option_tables_of_the_docs_are_up_to_date(page: Path) -> None:
    script = runpy.run_path(str(ROOT / "docs" / "write_option_tables.py"))
    text = page.read_text(encoding="utf-8")
    assert script["written"](text) == text, "run python docs/write_option_tables.py"
