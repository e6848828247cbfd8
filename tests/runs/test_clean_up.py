"""A history of runs is cleaned up: what a run needs stays, what is in use stays, and what retroflow did not make."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from retroflow.cli.main import run
from retroflow.errors import DamagedDataError, RetroflowError, UsageError
from retroflow.model.pretrained import write_checksums
from retroflow.runs import clean_up
from retroflow.runs.clean_up import remove, survey
from retroflow.runs.origin import Origin
from tests.cli.conftest import write_recipe

OTHER = "0123456789abcdef"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that share chunks, embeddings and index; neighbours of a third that was deleted; another embedder's."""
    folder = tmp_path_factory.mktemp("made")
    recipe = str(write_recipe(folder, "tiny"))
    assert run(["fit", "--recipe", recipe]) == 0
    assert run(["fit", "--recipe", recipe, "neighbours.k=1"]) == 0
    assert run(["prepare", "--recipe", recipe, "neighbours.k=3"]) == 0
    assert run(["prepare", "--recipe", recipe, "embedder.dimension=16"]) == 0
    for name in ("tiny", "runs"):
        shutil.copytree(folder / name, folder / "before" / name)
    return folder


@pytest.fixture
def history(made: Path, tmp_path: Path) -> Path:
    """A copy to clean up; its runs name the artifacts of the original by their fingerprints."""
    for name in ("tiny", "runs"):
        shutil.copytree(made / "before" / name, tmp_path / name)
    return tmp_path


def look(history: Path, *recipes: Path):
    return survey(history / "tiny" / "artifacts", [history / "runs"], recipes)


def kinds(found) -> list[str]:
    return [leftover.path.name.partition("-")[0] for leftover in found.leftovers if leftover.path.is_dir()]


def artifacts_of(history: Path) -> set[str]:
    return {path.name for path in (history / "tiny" / "artifacts").iterdir() if not path.name.startswith(".")}


def test_what_no_run_needs_goes_and_every_run_is_evaluated_and_generates_as_before(made: Path, capfd) -> None:
    artifacts = made / "tiny" / "artifacts"
    before = {path.name for path in artifacts.iterdir()}
    found = survey(artifacts, [made / "runs"])
    assert len(found.runs) == 2 and len(found.needed) == 5
    assert kinds(found) == ["neighbours", "neighbours", "index", "embeddings"]
    assert {path.name for path in artifacts.iterdir()} == before  # nothing is touched by looking
    assert list(remove(found)) == list(found.leftovers) and found.num_bytes > 1000
    assert artifacts_of(made) == found.needed
    assert {path.stem for path in (artifacts / ".locks").iterdir()} == found.needed
    assert {path.stem for path in (artifacts / ".verified").iterdir()} <= found.needed
    for folder in found.runs:
        assert run(["generate", str(folder), "--prompt", "Notes", "--max-new-tokens", "2"]) == 0
        capfd.readouterr()
        assert run(["evaluate", str(folder)]) == 0
        assert "built" not in capfd.readouterr().err
    assert survey(artifacts, [made / "runs"]).leftovers == ()


def test_a_recipe_that_is_given_keeps_what_it_needs(history: Path, made: Path) -> None:
    recipe = history / "other.yaml"
    recipe.write_text((made / "tiny.yaml").read_text().replace("dimension: 32", "dimension: 16"))
    assert kinds(look(history, recipe)) == ["neighbours"]  # of k = 3


def test_a_recipe_whose_retriever_searches_texts_is_given(history: Path, made: Path) -> None:
    recipe = history / "other.yaml"
    named = (made / "tiny.yaml").read_text().replace("retriever: {name: exact}", "retriever: {name: bm25}")
    assert "bm25" in named
    recipe.write_text(named)
    assert any(name.startswith("chunks") for name in look(history, recipe).needed)


def test_the_artifacts_of_an_exported_model_stay(history: Path) -> None:
    first = history / "runs" / "tiny" / "0001"
    exported = history / "models" / "one"
    exported.mkdir(parents=True)
    needed = look(history).needed
    fingerprints = {name.partition("-")[0]: name.partition("-")[2] for name in needed if "neighbours" not in name}
    Origin("tiny", 2, 2, 16, 64, "tokenizer", fingerprints, "0").write(exported)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (exported / name).touch()
    write_checksums(exported)
    shutil.rmtree(first)
    shutil.rmtree(history / "runs" / "tiny" / "0002")
    found = survey(history / "tiny" / "artifacts", [history / "runs", history / "models"])
    assert found.needed == {name for name in needed if "neighbours" not in name}


def test_parents_of_what_is_needed_are_needed(history: Path) -> None:
    (neighbours,) = [name for name in look(history).needed if name.startswith("neighbours")][:1]
    assert clean_up.with_parents([neighbours], history / "tiny" / "artifacts") >= {neighbours} | {
        name for name in look(history).needed if not name.startswith("neighbours")
    }


def test_what_killed_and_refused_commands_have_left_goes(history: Path) -> None:
    artifacts = history / "tiny" / "artifacts"
    for ending in (".partial", ".pieces", ".removed"):
        (artifacts / f"chunks-{OTHER}{ending}").mkdir()
        (artifacts / f"chunks-{OTHER}{ending}" / "file").write_text("x")
    for name in (f"chunks-{OTHER}.lock", f"chunks-{OTHER}.shard-1-of-2.lock", f"chunks-{OTHER}.owner"):
        (artifacts / ".locks" / name).touch()
    (artifacts / ".verified" / f"index-{OTHER}.json").write_text("{}")
    logs = artifacts / ".cluster-logs"
    for name in ("ended", "running", "young"):
        (logs / name / "submitit").mkdir(parents=True)
        (logs / name / ".lock").touch()
    empty = history / "runs" / "tiny" / "0009"
    (empty / "checkpoints").mkdir(parents=True)
    refused = history / "runs" / "tiny" / "0010"  # of an option that was refused late
    shutil.copytree(empty, refused)
    shutil.copy(history / "runs" / "tiny" / "0001" / "run.json", refused)
    (refused / "metrics.jsonl").touch()
    long_ago = time.time() - 7200
    for path in (
        empty,
        *empty.rglob("*"),
        refused,
        *refused.rglob("*"),
        artifacts / f"chunks-{OTHER}.pieces",
        artifacts / f"chunks-{OTHER}.pieces/file",
        *(path for name in ("ended", "running") for path in (logs / name, *(logs / name).iterdir())),
    ):
        os.utime(path, (long_ago, long_ago))
    with FileLock(logs / "running" / ".lock"):
        found = look(history)
    list(remove(found))
    assert {path.name for path in logs.iterdir()} == {"running", "young"}
    assert found.left_alone[logs / "running"] == "prepare --on is running"
    assert found.left_alone[logs / "young"] == "written to in the last hour, perhaps by a job on another machine"
    assert (
        not empty.exists()
        and not refused.exists()
        and not [path for path in artifacts.rglob("*") if OTHER in path.name]
    )
    assert artifacts_of(history) == found.needed


def test_what_is_young_or_foreign_stays(history: Path) -> None:
    artifacts = history / "tiny" / "artifacts"
    (artifacts / f"chunks-{OTHER}.pieces").mkdir()
    (artifacts / "mine").mkdir()
    (artifacts / f"index-{OTHER}").mkdir()
    (artifacts / f"index-{OTHER}" / "manifest.json").write_text("{}")
    (artifacts / f"embeddings-{OTHER}").symlink_to("mine")
    (artifacts / ".locks" / "other.lock").touch()
    (history / "runs" / "tiny" / "0009" / "checkpoints").mkdir(parents=True)
    found = look(history)
    assert {path.name: reason for path, reason in found.left_alone.items()} == {
        f"chunks-{OTHER}.pieces": "written to in the last hour, perhaps by a shard on another machine",
        "mine": "not made by retroflow",
        f"embeddings-{OTHER}": "not made by retroflow",
        f"index-{OTHER}": "its manifest cannot be read; remove the folder yourself if you know what it is",
        "0009": "a run is just beginning there",
    }
    list(remove(found))
    assert artifacts_of(history) == found.needed | {
        f"chunks-{OTHER}.pieces",
        "mine",
        f"index-{OTHER}",
        f"embeddings-{OTHER}",
    }
    assert (artifacts / ".locks" / "other.lock").exists()


def test_nothing_is_looked_at_while_an_artifact_is_made(history: Path) -> None:
    locks = history / "tiny" / "artifacts" / ".locks"
    with FileLock(locks / f"chunks-{OTHER}.shard-1-of-2.lock"):
        with pytest.raises(RetroflowError, match=rf"a process is making chunks-{OTHER}.shard-1-of-2; run this again"):
            look(history)


def test_what_is_locked_after_it_was_found_stays(history: Path) -> None:
    found = look(history)
    first = found.leftovers[0].path
    with FileLock(history / "tiny" / "artifacts" / ".locks" / f"{first.name}.lock"):
        gone = [leftover.path for leftover in remove(found)]
    assert first.is_dir() and first not in gone and len(gone) > 3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which files are open")
def test_what_another_process_has_open_stays_and_what_it_was_made_from(history: Path) -> None:
    index = next(leftover.path for leftover in look(history).leftovers if leftover.path.name.startswith("index"))
    partial = history / "tiny" / "artifacts" / f"chunks-{OTHER}.partial"
    partial.mkdir()
    (partial / "file").touch()
    files = [str(index / "manifest.json"), str(partial / "file")]
    program = f"import sys; files = [open(name) for name in {files!r}]; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        found = look(history)
        process.stdin.close()
    assert found.left_alone.pop(index) == found.left_alone.pop(partial) == f"process {process.pid} has it open"
    assert list(found.left_alone.values()) == ["an artifact that a process has open was made from it"]
    assert kinds(found) == ["neighbours", "neighbours"]


def test_a_run_that_does_not_say_what_it_needs_stops_everything(history: Path) -> None:
    description = history / "runs" / "tiny" / "0002" / "run.json"
    description.write_text("{")
    with pytest.raises(DamagedDataError, match="run.json"):
        look(history)
    description.unlink()
    with pytest.raises(UsageError, match="it has no run.json, so the artifacts that it needs are unknown"):
        look(history)


def test_without_any_run_nothing_counts_as_unneeded(history: Path) -> None:
    shutil.rmtree(history / "runs" / "tiny")
    with pytest.raises(UsageError, match="so all of .* would be removed. Give the folder of your runs"):
        look(history)
    with pytest.raises(UsageError, match="there is no folder"):
        survey(history / "nowhere", [history / "runs"])
    with pytest.raises(UsageError, match="there is no folder"):
        survey(history / "tiny" / "artifacts", [history / "nowhere"])


def test_a_folder_that_cannot_be_removed_is_told(history: Path, monkeypatch) -> None:
    found = look(history)

    def refuse(*paths):
        raise PermissionError(13, "Permission denied", str(paths[0]))

    monkeypatch.setattr(clean_up.os, "replace", refuse)
    with pytest.raises(RetroflowError, match="cannot be removed \\(Permission denied\\)"):
        list(remove(found))
