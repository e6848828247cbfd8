"""A run folder is understood wherever it stands, and what is no run folder is told with the one that is meant."""

import pytest

from retroflow.errors import DamagedDataError, GenerationError
from retroflow.runs.description import read_run
from retroflow.store.sealed_json import render_sealed

VALUES = {
    "data": {"artifacts_folder": "made/artifacts"},
    "embedder": {"name": "bert", "model": "models/tiny", "nested": {"files": ["a/b"], "path": "texts.jsonl"}},
}


def write_run(folder, values=VALUES, recipe="seed: 1\nk: 2\n", **others):
    folder.mkdir(parents=True)
    prints = {"chunks": "a1", "index": "b2"}
    identity = {"recipe": recipe, "values": values, "fingerprints": prints}
    places = {"artifacts_folder": "../../../made/artifacts", "started_in": "../../.."}
    (folder / "run.json").write_text(render_sealed({"identity": identity, "name": "tiny", **places} | others, what=""))
    (folder / "recipe.yaml").write_text(recipe)
    return folder


def test_relative_paths_lead_from_where_the_run_was_started_if_they_lead_nowhere_here(tmp_path, monkeypatch):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    run = read_run(write_run(project / "runs/tiny/0001"))
    (project / "models/tiny").mkdir(parents=True)
    (project / "bert").mkdir()  # a name, and no path
    (project / "texts.jsonl").touch()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    found = run.located(run.values["embedder"])
    assert found == {
        "name": "bert",
        "model": str(project / "models/tiny"),
        "nested": {"files": ["a/b"], "path": str(project / "texts.jsonl")},
    }
    (elsewhere / "models/tiny").mkdir(parents=True)
    assert run.located(run.values["embedder"])["model"] == "models/tiny"
    monkeypatch.chdir(project)
    assert run.located(run.values["embedder"]) == run.values["embedder"]


@pytest.mark.parametrize(
    "place",
    [
        "elsewhere/made/artifacts",
        "project/made/artifacts",
        "project/runs/made/artifacts",
        "project/runs/tiny/0001/made/artifacts",
    ],
)
def test_artifacts_are_found_as_given_as_the_run_has_them_and_beside_or_above_it(tmp_path, monkeypatch, place):
    run = read_run(write_run(tmp_path / "project/runs/tiny/0001"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(
        GenerationError, match="chunks-a1, which it was trained with, is in none of these folders"
    ) as told:
        run.artifact("chunks")
    assert f"\n  {tmp_path / place}\n" in str(told.value)
    assert len(str(told.value).splitlines()) == len(set(str(told.value).splitlines()))
    (tmp_path / place / "chunks-a1").mkdir(parents=True)
    assert run.artifact("chunks").resolve() == tmp_path / place / "chunks-a1"


def test_artifacts_at_a_path_of_another_machine_are_found_where_the_run_has_them(tmp_path):
    values = VALUES | {"data": {"artifacts_folder": "/nowhere/artifacts"}}
    run = read_run(write_run(tmp_path / "disk/runs/tiny/0001", values, artifacts_folder="../../../../big/artifacts"))
    (tmp_path / "big/artifacts/index-b2").mkdir(parents=True)
    assert run.artifact("index").resolve() == tmp_path / "big/artifacts/index-b2"


def test_a_recipe_with_other_lines_is_refused_and_one_that_is_gone_is_not(tmp_path):
    folder = write_run(tmp_path / "run")
    for text, words in (
        ("seed: 1\nk: 3\n", '"k: 3" there, "k: 2" in run.json'),
        ("seed: 1\n", '"" there, "k: 2" in run.json'),
        ("seed: 1\nk: 2\nk: 3\n", '"k: 3" there, "" in run.json'),
    ):
        (folder / "recipe.yaml").write_text(text)
        with pytest.raises(DamagedDataError, match=words):
            read_run(folder)
    (folder / "recipe.yaml").write_bytes(b"\xff")
    with pytest.raises(DamagedDataError, match="recipe.yaml"):
        read_run(folder)
    (folder / "recipe.yaml").unlink()
    assert read_run(folder).fingerprints == {"chunks": "a1", "index": "b2"}
