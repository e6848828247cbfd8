"""Whoever opens what an uninstalled plugin has made learns which distribution it was."""

import json
from pathlib import Path

import pytest

from retroflow.components import recipe_schema
from retroflow.errors import UnknownComponentError, UsageError
from retroflow.generation import database
from retroflow.generation.former_owner import naming_former_owner, owner_of_index, retriever_of_run
from retroflow.recipe import load
from retroflow.store.artifact import INDEX_FOLDER
from retroflow.store.manifest import Manifest
from retroflow.store.sealed_json import render_sealed

OWNER = "trees (tree-plugin 1.2)"
SENTENCE = 'There is no retriever "trees".*It was from tree-plugin 1.2 when this was made. Install it again: pip install tree-plugin==1.2'


def write_index(folder: Path) -> Path:
    (folder / INDEX_FOLDER).mkdir(parents=True)
    (folder / INDEX_FOLDER / "retriever.json").write_text(json.dumps({"owner": OWNER}))
    return folder


def test_a_database_names_the_former_owner_of_its_retriever_and_its_embedder(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index-1")
    manifest = Manifest("index", {}, {}, {}, {}, component={"name": "trees"})
    with pytest.raises(UnknownComponentError, match=SENTENCE):
        database._open_retriever(index, manifest, None)
    inputs = {"embedder": {"distribution": "letter-plugin 2.0"}}
    manifest = Manifest("embeddings", inputs, {}, {}, {}, component={"name": "letters"})
    with pytest.raises(UnknownComponentError, match=r"It was from letter-plugin 2\.0 .* letter-plugin==2\.0"):
        database._open_embedder(index, manifest, None)
    manifest = Manifest("embeddings", {"embedder": {}}, {}, {}, {}, component={"name": "letters"})
    with pytest.raises(UnknownComponentError, match="once its package is installed.$"):
        database._open_embedder(index, manifest, None)


def test_a_runs_recipe_is_loaded_with_the_former_owner_of_its_retriever(tmp_path: Path) -> None:
    write_index(tmp_path / "artifacts" / "index-1")
    run = tmp_path / "runs" / "r" / "0001"
    run.mkdir(parents=True)
    values = {"data": {"artifacts_folder": str(tmp_path / "artifacts")}}
    recipe = (
        "recipe_version: 1\ncorpus: {name: jsonl, path: x}\nembedder: {name: lexical}\nretriever: {name: trees}\n"
        "model: {name: retro}\n"
    )
    prints = {"chunks": "1", "index": "1"}
    identity = {"values": values, "fingerprints": prints, "recipe": recipe}
    (run / "run.json").write_text(render_sealed({"identity": identity}, what="run.json"))
    (run / "recipe.yaml").write_text(recipe)
    assert retriever_of_run(run) == OWNER
    with pytest.raises(UnknownComponentError, match=SENTENCE), naming_former_owner("retriever", retriever_of_run(run)):
        load(run / "recipe.yaml", [], schema=recipe_schema())


def test_what_is_not_known_is_not_said(tmp_path: Path) -> None:
    assert owner_of_index(tmp_path) is retriever_of_run(tmp_path) is None
    for owner in (None, "trees ()", "oaks (oak-plugin 1.0)"):
        with pytest.raises(UnknownComponentError) as raised, naming_former_owner("retriever", owner):
            raise UnknownComponentError('There is no retriever "trees".')
        assert str(raised.value) == 'There is no retriever "trees".'
    with pytest.raises(UsageError, match="^else$"), naming_former_owner("retriever", OWNER):
        raise UsageError("else")
