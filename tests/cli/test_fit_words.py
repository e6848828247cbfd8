"""What follows --resume is a path or an override, and both are told apart; a stop before anything has begun."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from retroflow.cli.fit import recipe_of, split_words
from retroflow.errors import DamagedDataError, UsageError
from retroflow.store.sealed_json import render_sealed


@pytest.mark.parametrize(
    ("words", "overrides", "path"),
    [
        ([], [], "last"),
        (["trainer.device=cpu"], ["trainer.device=cpu"], "last"),
        (["runs/a/0001", "trainer.device=cpu"], ["trainer.device=cpu"], "runs/a/0001"),
        (["--trainer.device", "cpu", "runs/a/0001"], ["--trainer.device", "cpu"], "runs/a/0001"),
        (["--trainer.device=cpu", "runs/a/0001"], ["--trainer.device=cpu"], "runs/a/0001"),
    ],
)
def test_words_after_resume(words, overrides, path):
    assert split_words(words, resume=True) == (overrides, Path(path))


def test_without_resume_every_word_is_an_override():
    assert split_words(["runs/a/0001"], resume=False) == (["runs/a/0001"], None)


def test_two_paths_are_refused():
    with pytest.raises(UsageError, match="takes one run folder or checkpoint; 2 given"):
        split_words(["a", "b"], resume=True)


def test_the_recipe_of_a_run_that_is_named_is_its_own(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    checkpoint = tmp_path / "checkpoints" / "step-00000001.ckpt"
    checkpoint.touch()
    values = {"data": {"artifacts_folder": "artifacts"}, "trainer": {"max_steps": 2}}
    identity = {"recipe": "max_steps: 2\n", "values": values, "fingerprints": {"chunks": "c"}}
    (tmp_path / "recipe.yaml").write_text(identity["recipe"])
    (tmp_path / "run.json").write_text(render_sealed({"identity": identity}, what="run.json"))
    assert recipe_of(tmp_path, []) == recipe_of(checkpoint, []) == tmp_path / "recipe.yaml"
    with pytest.raises(UsageError, match="not in a run folder .*; give --recipe FILE, too"):
        recipe_of(tmp_path / "nowhere", [])
    for nothing in (None, Path("last")):
        with pytest.raises(UsageError, match="Missing option '--recipe'"):
            recipe_of(nothing, [])
    (tmp_path / "recipe.yaml").write_text("max_steps: 3\n")  # which would train it longer
    with pytest.raises(DamagedDataError, match="line 1: it was changed after the training"):
        recipe_of(tmp_path, [])


def test_sigterm_while_libraries_are_imported_is_a_preemption(tmp_path):
    recipe = tmp_path / "r.yaml"
    os.mkfifo(recipe)  # reading it waits for a writer, as an import may for a file system
    program = (
        f"from retroflow.cli.main import main; import sys; sys.argv[1:] = ['fit', '--recipe', {str(recipe)!r}]; main()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    try:
        # The pipe has a reader from the moment on at which the recipe is opened.
        deadline = time.monotonic() + 300  # importing takes long on a busy machine
        while time.monotonic() < deadline:
            with suppress(OSError):
                writer = os.open(recipe, os.O_WRONLY | os.O_NONBLOCK)
                break
            time.sleep(0.02)
        process.terminate()
        os.close(writer)  # a signal that came just before read() was called waits until it returns
        assert process.communicate(timeout=300)[1].startswith("error: stopped before anything was begun")
        assert process.returncode == 75
    finally:
        process.kill()
