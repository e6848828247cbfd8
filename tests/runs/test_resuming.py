"""Which run goes on, and that a checkpoint of another recipe is refused by name of what differs."""

from pathlib import Path

import pytest

from retroflow.errors import DamagedDataError, UsageError
from retroflow.recipe import Recipe
from retroflow.runs.checkpoint_files import checkpoint_path
from retroflow.runs.checkpoints import read_head, write_checkpoint
from retroflow.runs.folder import write_report
from retroflow.runs.resuming import LAST, check_resume, choose_start, differences, refuse_other_weights
from tests.training.jobs import tiny_recipe


def identity(fingerprints=None, **sections):
    values = {"seed": 1, "model": {"width": 16}, "corpus": {"share": 0.5}, "trainer": {"max_steps": 9, "device": "cpu"}}
    return {
        "recipe": "seed: 1\n",
        "values": values | sections,
        "fingerprints": fingerprints or {"chunks": "a"},
        "version": "1",
    }


def start(tmp_path, this, resume=None, said=None):
    say = (lambda text: None) if said is None else said.append
    return choose_start(tiny_recipe(), this, runs_folder=tmp_path, resume=resume, say=say)


def finish(run, steps=9):
    write_report(run.report, {"training": {"steps": steps, "max_steps": 9, "stopped_by_time": False}})


def test_what_the_machine_decides_may_change():
    assert differences(identity(), identity(trainer={"max_steps": 9, "device": "cuda"})) == []


def test_differing_values_and_artifacts_are_named():
    other = identity(
        {"chunks": "b"}, model={"width": 32}, corpus={"share": 0.6}, trainer={"max_steps": 8, "device": "cpu"}
    )
    assert differences(identity(), other) == [
        "corpus.share: 0.5 there, 0.6 here",
        "model.width: 16 there, 32 here",
        "trainer.max_steps: 9 there, 8 here",
        "fingerprint of chunks: a there, b here",
    ]


def test_the_last_unfinished_run_of_this_recipe_goes_on(tmp_path):
    first, second = start(tmp_path, identity()), start(tmp_path, identity(model={"width": 32}))
    assert start(tmp_path, identity(), LAST).run == first.run
    finish(second.run)
    assert start(tmp_path, identity(), LAST).run == first.run
    finish(first.run, steps=5)  # by `evaluate`, half way
    assert start(tmp_path, identity(), LAST).run == first.run
    finish(first.run)
    again = choose_start(tiny_recipe(), identity(), runs_folder=tmp_path, resume=LAST, say=lambda text: None)
    assert (again.run, again.is_finished) == (first.run, True)
    assert start(tmp_path, identity(seed=2), LAST).run.path.name == "0003"


def test_the_checkpoint_is_chosen_after_the_run_was_waited_for(tmp_path):
    """The job before may be writing its last checkpoint, or its report, while its successor starts."""
    run = start(tmp_path, identity()).run

    def write_meanwhile(held):
        assert held == run
        write_checkpoint({"retroflow": identity()}, checkpoint_path(held.checkpoints, 4))

    for resume in (LAST, run.path):
        chosen = choose_start(
            tiny_recipe(), identity(), runs_folder=tmp_path, resume=resume, say=print, hold=write_meanwhile
        )
        assert (chosen.run, chosen.step) == (run, 4)
    held = []

    def finish_meanwhile(other):
        held.append(other.path.name)
        if other == run:
            finish(run)

    chosen = choose_start(
        tiny_recipe(), identity(), runs_folder=tmp_path, resume=LAST, say=print, hold=finish_meanwhile
    )
    assert (chosen.run, chosen.is_finished, held) == (run, True, ["0001"])


def test_another_recipes_run_is_refused(tmp_path):
    run = start(tmp_path, identity()).run
    for resume in (LAST, run.path):
        with pytest.raises(UsageError, match=r"another recipe.*\n  model.width: 16 there, 32 here") as caught:
            start(tmp_path, identity(model={"width": 32}), resume)
        assert caught.value.exit_code == 2


def test_another_recipe_is_refused_before_anything_is_prepared(tmp_path):
    def recipe(**sections):
        values = identity(trainer={"max_steps": 9, "runs_folder": str(tmp_path)}, **sections)["values"]
        return Recipe(values=values, origins={}, path=Path("tiny.yaml"))

    def check(given, resume, chunks="a", **environment):
        check_resume(given, resume, fingerprints_of=lambda recipe: {"chunks": chunks}, environment=environment)

    check(recipe(), LAST, "b")  # no run at all
    run = start(tmp_path, identity()).run
    for resume in (LAST, run.path):
        check(recipe(), resume)
        check(recipe(embedder={"device": "cuda"}), resume)
        with pytest.raises(UsageError, match=r"another recipe.*\n  model.width: 16 there, 32 here"):
            check(recipe(model={"width": 32}), resume)
        with pytest.raises(UsageError, match=r"another recipe.*\n  fingerprint of chunks: a there, b here"):
            check(recipe(), resume, "b")
        check(recipe(), resume, "b", WORLD_SIZE="2")  # the ranks agree on it later
    start(tmp_path, identity(model={"width": 32}))
    check(recipe(model={"width": 32}), LAST)
    check(recipe(), LAST)
    with pytest.raises(UsageError, match="neither a checkpoint nor a run folder"):
        check(recipe(), tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"another recipe.*\n  model.width"):
        check(recipe(model={"width": 64}), LAST)


def test_whether_a_run_can_be_lengthened_is_known_before_anything_is_prepared(tmp_path):
    def recipe(max_steps):
        values = identity(trainer={"max_steps": max_steps, "runs_folder": str(tmp_path)})["values"]
        return Recipe(values=values, origins={}, path=Path("tiny.yaml"))

    def check(max_steps, path, **prints):
        known = identity()["fingerprints"] | prints
        check_resume(recipe(max_steps), path, fingerprints_of=lambda recipe: known, environment={})

    run = start(tmp_path, identity()).run
    write_checkpoint({"retroflow": identity()}, checkpoint_path(run.checkpoints, 9))
    finish(run)
    check(12, run.path)
    check(12, checkpoint_path(run.checkpoints, 9))
    with pytest.raises(UsageError, match="trainer.max_steps: 8 given, and .* has 9 steps done"):
        check(8, run.path)
    with pytest.raises(UsageError, match="belongs to another recipe.*\n.*fingerprint of chunks: .* there, other here"):
        check(12, run.path, chunks="other")


def test_weights_are_judged_with_other_neighbours_but_not_as_another_model(tmp_path):
    path = checkpoint_path(tmp_path, 1)
    write_checkpoint({"retroflow": identity({"chunks": "a", "neighbours": "b"})}, path)
    stored = read_head(path)["retroflow"]
    refuse_other_weights(path, stored, identity({"chunks": "a", "neighbours": "c"}, corpus={"share": 0.6}))
    with pytest.raises(UsageError, match="another model or other chunks.*\n  model.width: 16 there, 32 here"):
        refuse_other_weights(path, stored, identity({"chunks": "a", "neighbours": "b"}, model={"width": 32}))
    with pytest.raises(UsageError, match="  corpus.share: 0.5 there, 0.6 here\n  fingerprint of chunks: a there, d"):
        refuse_other_weights(path, stored, identity({"chunks": "d", "neighbours": "b"}, corpus={"share": 0.6}))


def test_a_path_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="neither a checkpoint nor a run folder"):
        start(tmp_path, identity(), tmp_path / "nowhere")


def test_a_checkpoint_outside_of_a_run_folder_is_refused(tmp_path):
    path = tmp_path / "step-00000001.ckpt"
    path.touch()
    with pytest.raises(UsageError, match=r"not in a run folder; give <run folder>/checkpoints/"):
        start(tmp_path, identity(), path)


def test_a_broken_run_description_is_damage(tmp_path):
    run = start(tmp_path, identity()).run
    run.description.write_text("{")
    with pytest.raises(DamagedDataError, match="run.json"):
        start(tmp_path, identity(), LAST)
