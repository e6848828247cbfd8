"""`fit --dry-run` says what a recipe needs, from nothing and from prepared artifacts, and touches nothing."""

import json
from dataclasses import replace

import pytest

from retroflow.cli.main import run
from retroflow.components import recipe_schema
from retroflow.errors import RetroflowError, UsageError
from retroflow.planning.dry_run import dry_run
from retroflow.recipe import load
from retroflow.testing.tiny_corpus import write_tiny_corpus
from tests.pipeline.test_preview import quietly_prepared, snapshot

RECIPE = """
recipe_version: 1
seed: 1
corpus: {{name: jsonl, path: {folder}/tiny.jsonl, valid_share: 0.2}}
embedder: {{name: lexical, dimension: 32}}
retriever: {{name: exact}}
neighbours: {{k: 2}}
model: {{name: retro, width: 32, num_layers: 2, num_heads: 2, head_width: 16, cca_layers: [2], encoder_width: 16,
  encoder_layers: 1, encoder_heads: 2}}
data: {{vocabulary_size: 400, chunk_length: 16, sequence_chunks: 4, artifacts_folder: {folder}/artifacts}}
optimizer: {{warmup_steps: 2}}
trainer: {{max_steps: 4, batch_size: 2, device: cpu, precision: fp32, runs_folder: {folder}/runs}}
"""


@pytest.fixture
def recipe_file(tmp_path):
    write_tiny_corpus(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


def test_nothing_is_touched_and_everything_is_told(recipe_file, tmp_path, capsys):
    before = snapshot(tmp_path)
    assert run(["fit", "--recipe", str(recipe_file), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert snapshot(tmp_path) == before
    for fact in (
        "parameters",
        "about",
        "training chunks",
        "4 steps x 128 tokens = 512",
        "memory",
        "free",
        "nothing was made",
    ):
        assert fact in shown
    assert "prepared   nothing; to be made: chunks, embeddings, index, neighbours" in shown


def test_what_is_prepared_is_known_exactly(recipe_file, tmp_path, capsys):
    quietly_prepared(load(recipe_file, [], schema=recipe_schema()))
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert run(["fit", "--recipe", str(recipe_file), "--dry-run", "--json", "neighbours.k=3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert snapshot(tmp_path) == before
    assert (found["prepared"], found["missing"]) == (["chunks", "embeddings", "index"], ["neighbours"])
    assert not found["chunks_are_estimated"] and found["artifacts_bytes"] > 0
    assert found["checkpoints_bytes"] == 3 * 12 * found["parameters"]  # two are kept, a third is being written


def test_the_parameters_are_those_that_fit_would_train(recipe_file):
    from retroflow.training.job import make_job

    recipe = load(recipe_file, [], schema=recipe_schema())
    quietly_prepared(recipe)
    assert dry_run(recipe).plan.outline == make_job(recipe).module.outline


def test_it_refuses_what_fit_refuses(recipe_file, tmp_path):
    nowhere = "trainer.runs_folder '/proc/x': /proc cannot be written"  # by root neither, whom its permissions let
    with pytest.raises(RetroflowError, match=nowhere):
        dry_run(load(recipe_file, ["trainer.runs_folder=/proc/x"], schema=recipe_schema()))
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(RetroflowError, match="trainer.runs_folder .* is not a folder"):
        dry_run(load(recipe_file, [], schema=recipe_schema()))


@pytest.mark.parametrize("as_json", [False, True])
def test_without_the_corpus_the_model_is_planned_and_the_corpus_asked_for(recipe_file, tmp_path, capsys, as_json):
    (tmp_path / "tiny.jsonl").unlink()
    words = ["fit", "--recipe", str(recipe_file), "--dry-run", *(["--json"] if as_json else [])]
    assert run(words) == 2
    shown = capsys.readouterr()
    assert shown.err.count('tiny.jsonl" does not exist') == 1
    if as_json:
        found = json.loads(shown.out)
        assert found["parameters"] > 0 and found["chunks"] is None and "does not exist" in found["failure"]
    else:
        for fact in (
            "parameters",
            "4 steps x 128 tokens = 512",
            "memory     about",
            "of checkpoints",
            "nothing was made",
        ):
            assert fact in shown.out


def test_it_does_not_go_with_resume(recipe_file, capsys):
    assert run(["fit", "--recipe", str(recipe_file), "--dry-run", "--resume"]) == 2
    assert "--dry-run describes a new run" in capsys.readouterr().err


def test_too_small_a_disk_is_noted(recipe_file):
    found = dry_run(load(recipe_file, [], schema=recipe_schema()))
    large = replace(found, checkpoints_bytes=10**18)
    assert any("less than the 1,000,000.0 TB needed there" in line for line in large.lines())
    assert not any(line.startswith("note") for line in found.lines())


def test_machines_that_are_not_here_are_planned_for(recipe_file, capsys):
    words = ["trainer.strategy=fsdp", "trainer.devices=2", "trainer.nodes=2", "trainer.batch_size=8"]
    found = dry_run(load(recipe_file, words, schema=recipe_schema()))
    alone = dry_run(load(recipe_file, ["trainer.batch_size=8"], schema=recipe_schema()))
    assert found.to_json()["processes"] == 4
    assert found.plan.memory.states == alone.plan.memory.states / 4
    assert "device     2 x cpu on each of 2 machines, fsdp, fp32" in "\n".join(found.lines())
    assert run(["fit", "--recipe", str(recipe_file), "--dry-run", *words, "trainer.accumulate=4"]) == 2
    assert "cannot be divided over 4 processes x trainer.accumulate 4" in capsys.readouterr().err


def test_gpus_that_are_missing_are_noted(recipe_file, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    words = ["trainer.device=cuda", "trainer.strategy=ddp", "trainer.devices=2"]
    found = dry_run(load(recipe_file, words, schema=recipe_schema()))
    assert "note       this machine has 1 GPUs, the recipe needs 2" in found.lines()


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("trainer.batch_size=1000000000", "Lower trainer.batch_size"),
        ("model.width=1048576", "Make the model smaller"),
    ],
)
def test_what_cannot_fit_is_said_by_dry_run_and_refused_by_fit_before_anything_is_made(
    recipe_file, tmp_path, capsys, word, remedy
):
    before = snapshot(tmp_path)
    words = ["fit", "--recipe", str(recipe_file), word]
    assert run([*words, "--dry-run"]) == 0
    assert "note       does not fit: it needs about" in capsys.readouterr().out
    assert run([*words, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is False and found["memory_bytes"] > found["machine_memory_bytes"] > 0
    assert run(words) == 2
    errors = capsys.readouterr().err
    for part in ("this recipe does not fit: it needs about", "; this machine has", remedy, "--ignore-memory"):
        assert part in errors
    assert snapshot(tmp_path) == before


def test_who_insists_is_not_refused_for_memory(recipe_file, monkeypatch, capsys):
    def refuse(plan):
        raise UsageError("too large")

    monkeypatch.setattr("retroflow.training.fit.check_memory", refuse)
    words = ["fit", "--recipe", str(recipe_file), "trainer.max_steps=1", "trainer.retrieval=false"]
    assert run(words) == 2
    assert run([*words, "--ignore-memory"]) == 0


def test_the_first_failure_is_told_and_not_one_that_follows_from_it(recipe_file, monkeypatch):
    def failing(text):
        def fail(*_, **__):
            raise RetroflowError(text)

        return fail

    monkeypatch.setattr("retroflow.planning.dry_run.preview", failing("the base has no tokenizer"))
    monkeypatch.setattr("retroflow.planning.dry_run.plan_of_recipe", failing("8192 tokens are too many"))
    with pytest.raises(RetroflowError, match="the base has no tokenizer"):
        dry_run(load(recipe_file, [], schema=recipe_schema()))
