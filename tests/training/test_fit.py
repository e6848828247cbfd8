"""A run from its first step to its report, stopped and gone on with in every way."""

import json
import os
import signal

import pytest

from retroflow.distributed import stop_signals as stopping
from retroflow.errors import Interrupted, Preempted, RetroflowError, UsageError
from retroflow.planning.options import OptimizerOptions
from retroflow.runs.checkpoint_files import list_checkpoints
from retroflow.runs.checkpoints import read_checkpoint
from retroflow.runs.folder import RunFolder
from retroflow.runs.resuming import LAST
from retroflow.store.sealed_json import read_sealed
from retroflow.training import final_report as verdict
from retroflow.training import fit as fit_module
from retroflow.training.fit import fit
from tests.training.jobs import Killed, assert_same_run, kill, read, tiny_config, tiny_recipe, weights


@pytest.fixture
def default_hangup():
    """SIGHUP as a terminal's processes have it, whoever runs the tests: under nohup it is ignored, by our runs too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_run_leaves_its_folder_as_documented(run):
    result = run(validate_every=6)
    folder = result.run_folder
    assert folder.name == "0001" and result.steps == 12
    assert {
        "recipe.yaml",
        "run.json",
        "metrics.jsonl",
        "metrics.csv",
        "throughput.jsonl",
        "report.json",
        "checkpoints",
    } <= {path.name for path in folder.iterdir()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 6, 9, 12, 12]
    on, off = lines[2]["validation/loss_on"], lines[2]["validation/loss_off"]
    assert on != off and lines[2]["validation/retrieval_gap"] == off - on
    report = json.loads((folder / "report.json").read_text())
    assert set(report["validation"]) == {"on", "off", "shuffled", "random"}
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == [
        "step-00000012.ckpt",
        "step-00000008.ckpt",
    ]
    assert not list(folder.rglob("*.tmp"))
    assert run().run_folder.name == "0002"


@pytest.mark.parametrize("options", [{}, {"batch_size": 8, "accumulate": 2, "validate_every": 4}])
def test_killed_and_resumed_equals_unbroken(run, interfere, options):
    unbroken = run("unbroken", **options)
    undo = interfere(7, kill)
    with pytest.raises(Killed):
        run("broken", **options)
    undo()
    resumed = run("broken", resume=LAST, **options)
    assert resumed.run_folder.name == "0001"
    assert_same_run(unbroken.run_folder, resumed.run_folder)
    assert unbroken.report.measures["on"].nats == resumed.report.measures["on"].nats


def test_resumed_with_another_accumulate_the_steps_stay_whole(run, interfere):
    steady = {"model": tiny_config(dropout=0.0), "checkpoint_every": 3, "log_every": 1}
    unbroken = run("unbroken", **steady)
    undo = interfere(4, kill)
    with pytest.raises(Killed):
        run("broken", **steady)
    undo()
    resumed = run("broken", resume=LAST, accumulate=2, **steady)
    first, second = ([json.loads(line) for line in read(run.run_folder)] for run in (unbroken, resumed))
    assert [line["train/tokens"] for line in first] == [line["train/tokens"] for line in second]
    assert [line["train/loss"] for line in first] == pytest.approx([line["train/loss"] for line in second], rel=1e-4)


def test_killed_before_the_first_checkpoint_starts_again_in_its_folder(run, interfere):
    unbroken = run("unbroken")
    undo = interfere(2, kill)
    with pytest.raises(Killed):
        run("broken")
    undo()
    assert_same_run(unbroken.run_folder, run("broken", resume=LAST).run_folder)


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [(signal.SIGTERM, Preempted, 75), (signal.SIGINT, Interrupted, 130), (signal.SIGHUP, Preempted, 75)],
)
def test_a_signal_writes_a_checkpoint_at_the_step_boundary(
    run, interfere, monkeypatch, default_hangup, number, error, code
):
    monkeypatch.setattr(stopping, "_leave_terminal", lambda: None)  # that of the tests, under pytest -s
    undo = interfere(5, lambda: os.kill(os.getpid(), number))
    with pytest.raises(error, match="stopped at step 6") as caught:
        run("stopped")
    assert caught.value.exit_code == code
    undo()
    assert_same_run(run("unbroken").run_folder, run("stopped", resume=LAST).run_folder)


def test_handlers_are_given_back(run):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    run()
    assert [signal.getsignal(number) for number in numbers] == before


def test_under_nohup_a_run_outlives_its_terminal(run, interfere):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interfere(5, lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert run().steps == 12
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_damaged_newest_checkpoint_falls_back_and_says_so(run, interfere, capsys, tmp_path):
    undo = interfere(10, kill)
    with pytest.raises(Killed):
        run("broken")
    undo()
    newest = list_checkpoints(tmp_path / "broken/tiny/0001/checkpoints")[0]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    resumed = run("broken", resume=LAST)
    assert "step-00000008.ckpt" in capsys.readouterr().err
    assert_same_run(run("unbroken").run_folder, resumed.run_folder)


def test_resume_with_a_finished_run_shows_its_report_and_trains_nothing(run, capsys):
    first = run()
    before = {path: path.read_bytes() for path in first.run_folder.rglob("*") if path.is_file()}
    again = run(resume=LAST)
    assert (again.run_folder, again.steps) == (first.run_folder, 12)
    assert again.report.to_json() == read_sealed(first.run_folder / "report.json", remedy="")
    assert "0001 is finished, so nothing is trained" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in first.run_folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in first.run_folder.parent.iterdir()] == ["0001"]


def test_resume_starts_a_new_run_where_only_other_recipes_are_finished(run, capsys):
    run(seed=2)
    assert run(resume=LAST).run_folder.name == "0002"
    assert "no unfinished run of 'tiny'" in capsys.readouterr().err


def test_max_seconds_stops_and_the_report_says_so(run):
    result = run(max_seconds=1e-6, checkpoint_every=0)
    assert result.steps == 1
    assert any("trainer.max_seconds" in sentence for sentence in result.report.findings())


def test_without_retrieval_only_off_is_measured_and_retrieval_is_not_trained(run):
    result = run(retrieval=False, max_steps=4)
    assert set(result.report.measures) == {"off"}
    states = weights(result.run_folder)["optimizer_states"][0]
    trained = sum(len(group["params"]) for group in states["param_groups"])
    assert trained < len(weights(result.run_folder)["state_dict"])


def test_a_loss_that_is_not_finite_stops_with_advice(run):
    with pytest.raises(RetroflowError, match="Start a new run with a lower optimizer.learning_rate"):
        run(optimizer=OptimizerOptions(learning_rate=1e30, warmup_steps=0, clip_norm=0.0))


@pytest.mark.parametrize("log_every", [1, 100])
def test_no_checkpoint_keeps_weights_that_are_lost(run, tmp_path, log_every):
    spoilt = OptimizerOptions(learning_rate=1e30, warmup_steps=0, clip_norm=0.0)
    with pytest.raises(RetroflowError, match="Start a new run with a lower optimizer.learning_rate"):
        run(optimizer=spoilt, log_every=log_every, checkpoint_every=1, keep_checkpoints=100)
    for path in tmp_path.rglob("*.ckpt"):
        assert all(tensor.isfinite().all() for tensor in read_checkpoint(path)["state_dict"].values()), path


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ({"learning_rate": 1e30}, "After step 1 the loss is (nan|inf)"),
        ({"epsilon": 1e-60}, r"After step 1 weights are not finite \(such as "),
    ],
)
def test_weights_that_the_last_step_lost_end_the_run_without_a_checkpoint(run, tmp_path, optimizer, words):
    with pytest.raises(RetroflowError, match=words) as caught:
        run(optimizer=OptimizerOptions(warmup_steps=0, **optimizer), max_steps=1)
    assert caught.value.exit_code == 1
    folder = tmp_path / "runs/tiny/0001"
    assert not list(folder.rglob("*.ckpt")) and not (folder / "report.json").exists()
    assert "NaN" not in (folder / "metrics.jsonl").read_text()


def test_a_validation_loss_that_is_not_finite_is_an_error_and_no_report(run, tmp_path, monkeypatch):
    monkeypatch.setattr("retroflow.training.callbacks.refuse_lost_weights", lambda *arguments: None)
    with pytest.raises(RetroflowError, match="the validation loss with retrieval (on|off) is nan") as caught:
        run(optimizer=OptimizerOptions(learning_rate=1e30, warmup_steps=0), max_steps=1)
    assert caught.value.exit_code == 1 and not (tmp_path / "runs/tiny/0001/report.json").exists()


def test_the_screen_shows_our_lines_alone(run, capfd):
    run()
    shown = "".join(capfd.readouterr())
    for word in ("Tip", "GPU available", "num_workers", "Warning", "litlogger"):
        assert word not in shown
    assert "parameters" in shown and "tokens/s" in shown


def test_a_run_that_is_being_trained_cannot_be_resumed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "LOCK_SECONDS", 0.0)
    undone = RunFolder(tmp_path / "runs/tiny/0001")
    run()
    with undone.lock():
        with pytest.raises(UsageError, match="another process is working on this run"):
            run(resume=undone.path)


def test_a_signal_while_evaluating_leaves_an_unfinished_run_that_is_judged_on_resume(run, monkeypatch):
    original = verdict.measure_report

    def interrupted(job, **words):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(job, **words)

    monkeypatch.setattr(verdict, "measure_report", interrupted)
    with pytest.raises(Preempted, match="stopped while evaluating"):
        run()
    monkeypatch.setattr(verdict, "measure_report", original)
    resumed = run(resume=LAST)
    assert (resumed.run_folder.name, resumed.steps) == ("0001", 12)
    assert resumed.run_folder.joinpath("report.json").exists()


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, Interrupted)])
def test_a_signal_while_preparing_does_not_wait_for_its_end(monkeypatch, number, error):
    def prepare_for_long(recipe):
        os.kill(os.getpid(), number)
        pytest.fail("the signal was not heard")

    monkeypatch.setattr(fit_module, "make_job", prepare_for_long)
    with pytest.raises(error, match="stopped while preparing; the same command continues"):
        fit(tiny_recipe())


def test_a_second_interrupt_does_not_wait_for_the_step(run, interfere):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    interfere(2, twice)
    with pytest.raises(Interrupted):
        run()
