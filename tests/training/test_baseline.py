"""A run without retrieval needs chunks alone, from its first command to text."""

import json

import pytest

from retroflow.cli.main import run
from retroflow.testing.tiny_corpus import write_tiny_corpus
from tests.planning.test_dry_run import RECIPE


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """The folder of a finished run that was trained without retrieval, with an embedder that is not there."""
    folder = tmp_path_factory.mktemp("baseline")
    write_tiny_corpus(folder)
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE.format(folder=folder))
    words = ["trainer.retrieval=false", f"embedder={{name: bert, model: {folder}/nowhere}}"]
    assert run(["fit", "--recipe", str(recipe), *words]) == 0
    return folder / "runs" / "tiny" / "0001"


def test_only_chunks_are_prepared(baseline):
    artifacts = baseline.parents[2] / "artifacts"
    assert [path.name.partition("-")[0] for path in artifacts.glob("*-*")] == ["chunks"]
    assert list(json.loads((baseline / "run.json").read_text())["identity"]["fingerprints"]) == ["chunks"]


def test_it_is_judged_again(baseline, capsys):
    assert run(["evaluate", str(baseline), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["validation"]) == {"off"}


def test_it_writes_text_without_retrieval_and_says_that_it_has_no_database(baseline, capsys):
    words = ["generate", str(baseline), "--prompt", "Notes", "--max-new-tokens", "3", "--device", "cpu"]
    assert run([*words, "--no-retrieval"]) == 0
    assert run(words) != 0
    assert "was trained without retrieval" in capsys.readouterr().err


def test_it_is_exported(baseline, tmp_path):
    assert run(["export", str(baseline), str(tmp_path / "model")]) == 0
    assert (tmp_path / "model" / "model.safetensors").exists()
