"""`retroflow evaluate` keeps a run's report the run's: what it was trained with, of its last step, by its own files."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from retroflow.cli.main import run
from retroflow.errors import DamagedDataError, RetroflowError
from retroflow.runs.checkpoint_files import checkpoint_path, list_checkpoints
from retroflow.runs.checkpoints import read_checkpoint, write_checkpoint
from retroflow.runs.description import read_run
from retroflow.runs.folder import RunFolder
from retroflow.testing.tiny_corpus import write_tiny_corpus
from retroflow.training import evaluate as evaluating

RECIPE = """recipe_version: 1
corpus: {name: jsonl, path: tiny.jsonl, valid_share: 0.3}
embedder: {name: lexical, dimension: 16, buckets: 4096}
retriever: {name: exact}
neighbours: {k: 2}
data: {vocabulary_size: 280, chunk_length: 16, sequence_chunks: 4, artifacts_folder: artifacts}
model: {name: retro, width: 16, num_layers: 2, num_heads: 2, head_width: 8, cca_layers: [2], encoder_width: 8,
  encoder_layers: 1, encoder_heads: 1}
optimizer: {learning_rate: 0.01, warmup_steps: 2}
trainer: {max_steps: 4, batch_size: 2, device: cpu, precision: fp32, checkpoint_every: 2, validation_batches: 1,
  num_threads: 1, eval_batch_size: 64, runs_folder: runs}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with corpus, artifacts and a finished run of four steps, everything by relative paths."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_tiny_corpus(folder, 6, seed=0)
    (folder / "tiny.yaml").write_text(RECIPE)
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert run(["fit", "--recipe", "tiny.yaml"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """A copy of it, in which the test stands; the run is runs/tiny/0001."""
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return RunFolder(tmp_path / "project/runs/tiny/0001")


@pytest.fixture
def retroflow(capfd):
    """Run a command line; returns exit code, stdout and stderr."""

    def go(*words):
        capfd.readouterr()
        code = run([str(word) for word in words])
        return code, *capfd.readouterr()

    return go


def content(file):
    return json.loads(file.read_text())


def files_of(folder):
    return {path for path in folder.rglob("*") if ".verified" not in path.parts and ".locks" not in path.parts}


def flip(path, place=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    path.write_bytes(data)


def timeless(report):
    """A report without what differs between two measurements of the same."""
    return {key: value for key, value in report.items() if key not in ("validation", "sha256")} | {
        mode: {key: value for key, value in loss.items() if not key.startswith("seconds")}
        for mode, loss in report["validation"].items()
    }


def test_a_finished_run_measured_as_it_was_trained_gets_the_same_report(project, retroflow):
    before = content(project.report)
    code, out, _ = retroflow("evaluate", project.path, "trainer.runs_folder=elsewhere", "seed=1")
    assert code == 0 and out.splitlines()[-1] == f"report: {project.report}"
    after = content(project.report)
    assert timeless(after) == timeless(before)
    assert after["measured"]["checkpoint"] == "step-00000004.ckpt" and after["measured"]["overrides"] == {}


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        (["trainer.retrieval=false"], {"trainer.retrieval": False}),
        (
            ["seed=77", "trainer.max_steps=500", "trainer.precision=bf16"],
            {"seed": 77, "trainer.max_steps": 500, "trainer.precision": "bf16"},
        ),
        (["neighbours.k=1"], {"neighbours.k": 1}),
    ],
)
def test_overrides_leave_the_report_and_the_facts_of_training_alone(project, retroflow, overrides, kept):
    before = project.report.read_bytes()
    code, out, notes = retroflow("evaluate", project.path, *overrides, "--json")
    assert code == 0 and project.report.read_bytes() == before
    shown = json.loads(out)
    written = content(next(project.path.glob("report-step-00000004-????????.json")))
    assert (
        shown["report"].endswith(".json") and written["training"] == shown["training"] == json.loads(before)["training"]
    )
    assert written["measured"]["overrides"] == kept and written["measured"]["step"] == 4
    if "trainer.retrieval" in kept:
        assert (
            written["findings"] == shown["findings"] and "though the model was trained with it" in shown["findings"][0]
        )
    if "neighbours.k" in kept:
        assert "neighbours: not the run's, because of neighbours.k=1; made where they are missing" in notes


def test_another_step_gets_a_report_of_its_own_and_the_run_stays_as_finished_as_it_was(project, retroflow):
    before = project.report.read_bytes()
    assert retroflow("evaluate", project.path, "--checkpoint", "2")[0] == 0
    assert project.report.read_bytes() == before
    older = content(project.path / "report-step-00000002.json")
    assert (older["training"]["steps"], older["training"]["max_steps"]) == (2, 4)
    project.report.unlink()
    checkpoint_path(project.checkpoints, 4).unlink()
    for words in ([], ["trainer.max_steps=2"]):
        assert retroflow("evaluate", project.path, *words)[0] == 0
        assert not project.report.exists() and not project.is_finished
    code, _, notes = retroflow("fit", "--recipe", "tiny.yaml", "--resume")
    assert code == 0 and "continuing runs/tiny/0001 from step 2" in notes and project.is_finished


def test_a_report_goes_where_it_is_wanted_but_not_over_the_run_s(project, retroflow, tmp_path):
    before = project.report.read_bytes()
    wanted = tmp_path / "mine.json"
    assert retroflow("evaluate", project.path, "seed=2", "--output", wanted)[0] == 0
    assert content(wanted)["measured"]["overrides"] == {"seed": 2}
    shutil.copytree(project.path, project.path.with_name("0002"))
    for output, message in (
        (project.report, "a run's report.json is of its last step, as it was trained; choose another name"),
        (project.path.with_name("0002") / "report.json", "a run's report.json is of its last step"),
        (project.description, "this file exists and is not a report of evaluate; choose another name"),
        (Path("/dev/zero"), "this file exists and is not a report"),
        (project.path / "metrics.jsonl", "this file exists and is not a report"),
        (tmp_path, "is a folder"),
        (tmp_path / "no/where.json", "there is no folder"),
    ):
        code, out, err = retroflow("evaluate", project.path, "seed=2", "--output", output)
        assert (code, out) == (2, "") and message in err
    code, out, err = retroflow("evaluate", project.path, "seed=2", "--output", "/proc/mine.json")
    assert (code, out) == (1, "") and "--output /proc/mine.json: /proc cannot be written" in err
    assert project.report.read_bytes() == before and not list(project.path.glob("report-*"))
    assert retroflow("evaluate", project.path, "seed=3", "--output", wanted)[0] == 0
    assert content(wanted)["measured"]["overrides"] == {"seed": 3}


def test_somebody_else_s_run_is_evaluated_and_the_report_shown(project, retroflow, monkeypatch, tmp_path):
    before = files_of(project.path)

    def refuse_writing(folder):  # root may write everywhere
        return "Permission denied" if folder.is_relative_to(project.path.parents[1]) else ""

    monkeypatch.setattr(evaluating, "why_not_writable", refuse_writing)
    code, out, notes = retroflow("evaluate", project.path, "--json")
    assert code == 0 and json.loads(out)["report"] is None, notes
    assert "cannot be written: the report is shown but not saved; choose another file for it" in notes
    code, out, _ = retroflow("evaluate", project.path, "--output", tmp_path / "mine.json")
    assert code == 0 and content(tmp_path / "mine.json")["measured"]["step"] == 4
    assert files_of(project.path) == before
    code, _, err = retroflow("evaluate", project.path, "--output", project.path / "mine.json")
    assert code == 1 and "cannot be written" in err


def test_what_was_measured_is_shown_even_if_the_disk_is_full_by_then(project, retroflow, monkeypatch):
    def full(path, report):
        raise RetroflowError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(evaluating, "write_report", full)
    code, out, err = retroflow("evaluate", project.path, "--json")
    assert code == 1 and json.loads(out)["validation"] and json.loads(out)["report"] is None
    assert "error: " in err and "No space left" in err


def test_a_damaged_newest_checkpoint_is_not_replaced_by_an_older_one_in_silence(project, retroflow, tmp_path):
    before = project.report.read_bytes()
    flip(checkpoint_path(project.checkpoints, 4))
    for words in (["evaluate"], ["export"], ["generate"]):
        rest = {"evaluate": [], "export": [tmp_path / "out"], "generate": ["--prompt", "a", "--max-new-tokens", "2"]}
        command, *_ = words
        code, out, err = retroflow(command, project.path, *rest[command])
        assert (code, out) == (3, "") and "step-00000004.ckpt" in err and "--checkpoint 2" in err
        code, out, err = retroflow(command, project.path, *rest[command], "--checkpoint", "2")
        assert code == 0, err
    assert project.report.read_bytes() == before
    flip(checkpoint_path(project.checkpoints, 2))
    code, _, err = retroflow("evaluate", project.path)
    assert code == 3 and "no other one is intact" in err
    code, _, err = retroflow("evaluate", project.path, "--checkpoint", "3")
    assert code == 2 and "the run has checkpoints of these steps: 4, 2" in err


def test_the_checkpoint_of_another_run_is_refused_as_generate_does(project, retroflow):
    checkpoint = read_checkpoint(checkpoint_path(project.checkpoints, 4))
    stored = checkpoint["retroflow"]
    checkpoint["retroflow"] = stored | {"values": stored["values"] | {"seed": 5}}
    write_checkpoint(checkpoint, checkpoint_path(project.checkpoints, 6))
    messages = set()
    for words in (["evaluate"], ["generate", "--prompt", "a"]):
        code, out, err = retroflow(words[0], project.path, *words[1:])
        assert (code, out) == (2, "") and "seed: 5 there, 1 here" in err
        messages.add(err)
    assert len(messages) == 1
    assert retroflow("evaluate", project.path, "--checkpoint", "4")[0] == 0


def test_weights_that_are_not_finite_are_neither_exported_nor_judged(project, retroflow):
    before = project.report.read_bytes()
    checkpoint = read_checkpoint(checkpoint_path(project.checkpoints, 4))
    name = next(name for name in checkpoint["state_dict"] if "embedding" in name)
    checkpoint["state_dict"][name][3] = float("nan")
    write_checkpoint(checkpoint, checkpoint_path(project.checkpoints, 4))
    for command, *rest in (["evaluate"], ["generate", "--prompt", "a"], ["export", "out"]):
        code, out, err = retroflow(command, project.path, *rest)
        assert (code, out) == (1, "") and "are not finite" in err
    assert project.report.read_bytes() == before and not os.path.exists("out")


def test_one_changed_digit_of_a_run_s_files_is_found(project, retroflow):
    """Everything that reads a run folder reads it by `read_run`, so that one call stands for the commands."""
    draws = random.Random(3)
    for file in (project.recipe, project.description):
        text = file.read_text()
        digits = [place for place, letter in enumerate(text) if letter.isdigit()]
        for place in draws.sample(digits, min(len(digits), 150)):
            other = draws.choice([digit for digit in "0123456789" if digit != text[place]])
            file.write_text(text[:place] + other + text[place + 1 :])
            with pytest.raises(DamagedDataError, match=file.name) as caught:
                read_run(project.path)
            assert caught.value.exit_code == 3
        file.write_text(text)
    read_run(project.path)
    project.recipe.write_text(project.recipe.read_text().replace("k: 2", "k: 3"))
    for words in (["evaluate"], ["generate", "--prompt", "a"], ["export", "out"]):
        code, _, err = retroflow(words[0], project.path, *words[1:])
        assert code == 3 and 'recipe.yaml", line ' in err and '"k: 3" there, "k: 2" in run.json' in err


def test_without_its_corpus_a_run_is_evaluated_all_the_same(project, retroflow):
    before = files_of(project.path.parents[2] / "artifacts")
    with open("tiny.jsonl", "a") as file:
        file.write('{"id": "new", "text": "one more"}\n')
    assert retroflow("evaluate", project.path)[0] == 0
    os.unlink("tiny.jsonl")
    assert retroflow("evaluate", project.path)[0] == 0
    code, _, err = retroflow("evaluate", project.path, "neighbours.k=1")
    assert (
        code == 2 and "neighbours.k=1: the run's own artifacts cannot be used for this" in err and "tiny.jsonl" in err
    )
    assert files_of(project.path.parents[2] / "artifacts") == before
    shutil.rmtree("artifacts")
    code, _, err = retroflow("evaluate", project.path)
    assert code == 2 and "in none of these folders" in err and "Others cannot be made here" in err


def test_artifacts_that_were_deleted_are_made_again_if_they_are_the_same(project, retroflow):
    before = timeless(content(project.report))
    shutil.rmtree("artifacts")
    assert retroflow("evaluate", project.path)[0] == 0 and timeless(content(project.report)) == before
    shutil.rmtree("artifacts")
    with open("tiny.jsonl", "a") as file:
        file.write('{"id": "new", "text": "one more"}\n')
    code, _, err = retroflow("evaluate", project.path)
    assert code == 2 and "fingerprint of chunks" in err and not os.path.exists("artifacts")


def test_what_overrides_need_is_made_where_it_is_wanted(project, retroflow, tmp_path):
    before = files_of(project.path.parents[2] / "artifacts")
    mine = f"data.artifacts_folder={tmp_path / 'mine'}"
    assert retroflow("evaluate", project.path, mine)[0] == 0
    assert not (tmp_path / "mine").exists()  # the run's own are enough
    assert retroflow("evaluate", project.path, mine, "neighbours.k=1")[0] == 0
    assert list((tmp_path / "mine").glob("neighbours-*"))
    assert files_of(project.path.parents[2] / "artifacts") == before


def test_nothing_is_prepared_that_is_going_to_be_refused(project, retroflow):
    with open("tiny.jsonl", "a") as file:
        file.write('{"id": "new", "text": "one more"}\n')
    before = files_of(project.path.parents[2])
    for override, words in (
        ("data.chunk_length=8", "data.chunk_length: 16 there, 8 here"),
        ("model.width=8", "model.width: 16 there, 8 here"),
    ):
        code, _, err = retroflow("evaluate", project.path, override)
        assert code == 2 and words in err
    project.report.unlink()  # it was killed while it was judged
    before.remove(project.report)
    for overrides, words in (
        (["neighbours.k=1"], "neighbours.k: 2 there, 1 here"),
        (["corpus.valid_share=0.4"], "corpus.valid_share: 0.3 there, 0.4 here"),
        ([], "the text of the corpus or the tokenizer has changed since"),
    ):
        for named in ([], [project.path]):
            code, _, err = retroflow("fit", "--recipe", "tiny.yaml", *overrides, "--resume", *named)
            assert code == 2 and words in err
    assert files_of(project.path.parents[2]) == before


def test_a_run_is_used_from_anywhere_and_after_a_move(project, retroflow, tmp_path, monkeypatch):
    generate = ("--prompt", "Notes", "--max-new-tokens", "3")
    text = retroflow("generate", "runs/tiny/0001", *generate)[1]
    assert text
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    moved = [project.path]
    shutil.copytree(project.path.parents[2], tmp_path / "moved")
    moved.append(tmp_path / "moved/runs/tiny/0001")
    (tmp_path / "kept").mkdir()
    shutil.copytree(project.path, tmp_path / "kept/best")
    shutil.copytree(project.path.parents[2] / "artifacts", tmp_path / "kept/artifacts")
    moved.append(tmp_path / "kept/best")
    for folder in moved:
        assert retroflow("generate", folder, *generate)[:2] == (0, text)
        code, out, _ = retroflow("evaluate", os.path.relpath(folder), "neighbours.k=2", "--json")
        assert code == 0 and json.loads(out)["measured"]["step"] == 4
        code, out, _ = retroflow("evaluate", folder, "neighbours.k=1", "--json")
        has_corpus = folder != moved[-1]
        assert code == (0 if has_corpus else 2)
        assert not has_corpus or json.loads(out)["measured"]["overrides"] == {"neighbours.k": 1}
    assert retroflow("export", moved[-1], "exported")[:2] == (0, "exported: tiny, step 4\n")
    shutil.rmtree(tmp_path / "kept/artifacts")
    code, _, err = retroflow("generate", moved[-1], *generate)
    looked = [tmp_path / "empty/artifacts", tmp_path / "artifacts", tmp_path / "kept/artifacts"]
    assert code == 2 and all(f"\n  {place}\n" in err for place in looked)


def test_the_folder_above_or_inside_a_run_names_the_run(project, retroflow):
    commands = (["generate", "--prompt", "a"], ["evaluate"], ["export", "out"])
    shutil.copytree(project.path, project.path.with_name("0002"))
    (project.path.parent / "²").mkdir()
    for command, *rest in commands:
        for folder, named in (
            ("runs/tiny", "runs/tiny/0002"),
            ("runs", "runs/tiny/0002"),
            ("runs/tiny/0001/checkpoints", str(project.path)),
        ):
            code, out, err = retroflow(command, folder, *rest)
            assert (code, out) == (2, "") and f"did you mean {named}?" in err
        code, _, err = retroflow(command, "nowhere", *rest)
        assert code == 2 and '"nowhere"' in err
    code, _, err = retroflow("fit", "--recipe", "tiny.yaml", "--resume", "runs/tiny")
    assert code == 2 and "did you mean runs/tiny/0002?" in err
    project.description.unlink()
    for command, *rest in commands:
        code, _, err = retroflow(command, project.path, *rest)
        assert code == 2 and "it has no run.json" in err and "but it holds checkpoints" in err


def test_copies_of_checkpoints_are_left_alone(project, retroflow):
    for name in ("step-best.ckpt", "step-00000004 copy.ckpt", "step-²²²²²²²²²²²².ckpt"):
        shutil.copy(checkpoint_path(project.checkpoints, 4), project.checkpoints / name)
        shutil.copy(checkpoint_path(project.checkpoints, 4), project.checkpoints / f"{name}.sha256")
    kept = {path.name for path in project.checkpoints.iterdir()}
    project.report.unlink()
    for words in (
        ["fit", "--recipe", "tiny.yaml", "--resume"],
        ["generate", project.path, "--prompt", "a", "--max-new-tokens", "2"],
        ["evaluate", project.path],
        ["export", project.path, "out"],
    ):
        code, _, err = retroflow(*words)
        assert code == 0, err
    assert {path.name for path in project.checkpoints.iterdir()} == kept
    for words in (
        ["fit", "--recipe", "tiny.yaml", "--resume", project.checkpoints / "step-best.ckpt"],
        ["evaluate", project.path, "--checkpoint", "step-best.ckpt"],
    ):
        code, _, err = retroflow(*words)
        assert code == 2 and "step-best.ckpt: not the name of a checkpoint" in err


def test_a_finished_run_without_checkpoints_says_so(project, retroflow):
    for path in list_checkpoints(project.checkpoints):
        path.unlink()
    for command, *rest in (["evaluate"], ["generate", "--prompt", "a"], ["export", "out"]):
        code, _, err = retroflow(command, project.path, *rest)
        assert code == 2 and "its checkpoints are gone; report.json says that it was trained to step 4" in err
    project.report.unlink()
    code, _, err = retroflow("evaluate", project.path)
    assert code == 2 and "has no checkpoint yet" in err
    (project.checkpoints / "step-best.ckpt").touch()
    code, _, err = retroflow("evaluate", project.path)
    assert code == 2 and "step-best.ckpt: not the name of a checkpoint" in err
