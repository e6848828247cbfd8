"""A run is trained longer: `--resume RUN trainer.max_steps=N`."""

import json

import pytest

from retroflow.errors import UsageError
from retroflow.planning.options import OptimizerOptions
from retroflow.runs.checkpoint_files import checkpoint_path, list_checkpoints
from retroflow.runs.checkpoints import read_head
from retroflow.runs.resuming import LAST
from tests.training.jobs import Killed, assert_same_run, kill, read

STEADY = OptimizerOptions(warmup_steps=0, learning_rate=0.01, final_share=1.0)


def lines(run_folder, name):
    return [json.loads(line)[name] for line in read(run_folder)]


def test_with_a_steady_learning_rate_it_equals_a_run_that_was_as_long_from_the_start(run):
    """No batch is seen twice or left out, and optimizer and dropout go on."""
    steady = {"optimizer": STEADY, "checkpoint_every": 6}
    long = run("long", max_steps=18, **steady)
    first = run("short", max_steps=12, **steady)
    longer = run("short", resume=first.run_folder, max_steps=18, **steady)
    assert (longer.run_folder, longer.steps) == (first.run_folder, 18)
    assert_same_run(long.run_folder, longer.run_folder)


@pytest.mark.parametrize("step", [13, 17])
def test_killed_after_it_was_lengthened_and_resumed_equals_unbroken(run, interfere, step):
    unbroken = run("unbroken")
    unbroken = run("unbroken", resume=unbroken.run_folder, max_steps=20)
    first = run("broken")
    undo = interfere(step, kill)
    with pytest.raises(Killed):
        run("broken", resume=first.run_folder, max_steps=20)
    undo()
    resumed = run("broken", resume=LAST, max_steps=20)
    assert resumed.run_folder == first.run_folder
    assert_same_run(unbroken.run_folder, resumed.run_folder)
    assert unbroken.report.measures["on"].nats == resumed.report.measures["on"].nats


def test_the_learning_rate_is_that_of_the_new_schedule_and_is_told(run, capsys):
    long = run("long", max_steps=24, log_every=1)
    first = run("short", log_every=1)
    capsys.readouterr()
    longer = run("short", resume=first.run_folder, max_steps=24, log_every=1)
    rates, wanted = (lines(each.run_folder, "train/learning_rate") for each in (longer, long))
    assert rates[12:] == wanted[12:] and rates[11] < rates[12]
    told = capsys.readouterr().err
    # A line of metrics has the rate of the step after it.
    assert (
        f"a new schedule from step 12: trainer.max_steps is 24 and was 12. The learning rate was {rates[10]:.3g} in step "
        f"12, is {wanted[11]:.3g} in the next one, and ends at {wanted[22]:.3g}" in told
    )


def test_the_run_folder_tells_the_history(run):
    first = run()
    report = (first.run_folder / "report.json").read_bytes()
    longer = run(resume=first.run_folder, max_steps=16)
    longer = run(resume=first.run_folder, max_steps=20)
    folder = longer.run_folder
    history = [{"first_step": step, "max_steps": steps} for step, steps in ((0, 12), (12, 16), (16, 20))]
    assert (folder / "report-step-00000012.json").read_bytes() == report
    assert (folder / "report-step-00000016.json").exists()
    new = json.loads((folder / "report.json").read_text())
    assert (new["training"]["steps"], new["training"]["max_steps"], new["training"]["schedules"]) == (20, 20, history)
    assert sum("Trained longer from step" in sentence for sentence in new["findings"]) == 2
    for identity in (
        json.loads((folder / "run.json").read_text())["identity"],
        read_head(list_checkpoints(folder / "checkpoints")[0])["retroflow"],
    ):
        assert identity["values"]["trainer"]["max_steps"] == 20
        assert identity["schedules"] == history


def test_an_unfinished_run_can_be_lengthened_and_an_older_checkpoint(run, interfere):
    undo = interfere(7, kill)
    with pytest.raises(Killed):
        run()
    undo()
    folder = run(resume=LAST).run_folder
    longer = run(resume=checkpoint_path(folder / "checkpoints", 8), max_steps=16)
    history = json.loads((folder / "report.json").read_text())["training"]["schedules"]
    assert longer.steps == 16 and history == [{"first_step": 0, "max_steps": 12}, {"first_step": 8, "max_steps": 16}]


def test_steps_that_are_done_are_refused_and_so_is_any_other_change(run):
    folder = run().run_folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(
        UsageError, match="trainer.max_steps: 10 given, and .*0001 has 12 steps done; give more than 12"
    ):
        run(resume=folder, max_steps=10)
    with pytest.raises(UsageError, match=r"another recipe.*\n  seed: 1 there, 2 here\nuse"):
        run(resume=folder, max_steps=20, seed=2)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_a_finished_run_without_checkpoints_is_not_trained_again_from_the_start(run, capsys):
    folder = run().run_folder
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(UsageError, match="is finished and has no checkpoint to continue from; start a new run"):
        run(resume=folder, max_steps=20)
    capsys.readouterr()
    assert run(resume=folder).steps == 12
    assert "0001 is finished, so nothing is trained" in capsys.readouterr().err
    assert not list((folder / "checkpoints").iterdir())


def test_the_last_run_is_not_lengthened_unless_it_is_named(run, interfere):
    undo = interfere(7, kill)
    with pytest.raises(Killed):
        run()
    undo()
    with pytest.raises(UsageError, match="trainer.max_steps: 12 there, 20 here"):
        run(resume=LAST, max_steps=20)
