"""W&B mirrors a run offline, keeps its id, and can never stop a run. Its files are read back as wandb wrote them."""

import json
import subprocess
import sys
import threading

import pytest

from retroflow.protocols import NeighbourExample, ReportTable, TrackedRun
from retroflow.runs.resuming import LAST
from retroflow.training import fit as fit_module
from retroflow.training.fit import fit
from tests.training.jobs import tiny_job, tiny_recipe

wandb = pytest.importorskip("wandb")
offline_runs = pytest.importorskip("tests.training.wandb_files").offline_runs

SECRET = "correct horse battery staple"


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.teardown()  # its service remembers the settings of the first run


@pytest.fixture
def tracker():
    from retroflow.tracking.wandb import WandbTracker

    return WandbTracker


def tracked(folder):
    return TrackedRun(folder=folder, name="tiny-exact-k2-0001", group="tiny", description={"recipe": {"seed": 1}})


def mirror_once(mirror, folder, *, steps=(10,), summary=None):
    mirror.start(tracked(folder))
    for step in steps:
        mirror.log({"train/loss": 20.0 / step}, step)
    mirror.finish(summary or {"validation/gain_over_off": 0.1})


def test_without_a_key_the_run_is_kept_offline_under_one_id(tmp_path, tracker, capsys):
    mirror_once(tracker(job_type="ablation", tags=("a", "b")), tmp_path, steps=(10, 20))
    mirror_once(tracker(), tmp_path, steps=(20, 30))
    run_id = json.loads((tmp_path / "wandb.json").read_text())["id"]
    first, second = offline_runs(tmp_path)
    assert {first.run.run_id, second.run.run_id} == {run_id}
    assert (first.run.project, first.run.run_group, first.run.job_type) == ("retroflow", "tiny", "ablation")
    assert (first.run.display_name, list(first.run.tags)) == ("tiny-exact-k2-0001", ["a", "b"])
    assert first.config["recipe"] == {"seed": 1}
    assert first.rows("train/loss") == [(10, 2.0), (20, 1.0)]
    # W&B's own step is the optimizer step, so that `wandb sync` fits the pieces together.
    assert [row["_step"] for row in second.history] == [20, 30]
    assert first.summary["validation/gain_over_off"] == 0.1
    assert capsys.readouterr().err.count("wandb has no key") == 2


def test_wandbs_own_command_finds_the_runs(tmp_path, tracker):
    mirror_once(tracker(), tmp_path)
    wandb.teardown()
    result = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--dry-run"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    run_id = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert f"run-{run_id}.wandb" in result.stdout + result.stderr


def test_a_key_without_a_network_keeps_the_run_offline_under_its_id(tmp_path, tracker, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: nobody answers
    mirror_once(tracker(init_seconds=1.0), tmp_path)
    run_id = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert [folder.name.endswith(run_id) for folder in tmp_path.glob("wandb/offline-run-*")] == [True]
    assert "wandb cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize(("mode", "runs"), [("disabled", 0), ("offline", 1), ("dryrun", 1)])
def test_wandb_mode_goes_before_the_recipe(tmp_path, tracker, monkeypatch, mode, runs):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    mirror_once(tracker(mode="online"), tmp_path)
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == runs


def test_the_environment_is_left_as_it_was(tmp_path, tracker, monkeypatch):
    mirror_once(tracker(), tmp_path)
    assert "WANDB_MODE" not in __import__("os").environ


def test_a_sweeps_agent_chooses_the_id_of_a_new_run_only(tmp_path, tracker, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "chosen01")
    mirror_once(tracker(), tmp_path)
    monkeypatch.setenv("WANDB_RUN_ID", "chosen02")
    mirror_once(tracker(), tmp_path)
    assert {run.run.run_id for run in offline_runs(tmp_path)} == {"chosen01"}


def test_a_run_left_open_by_a_failure_does_not_get_the_next_runs_rows(tmp_path, tracker):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    tracker().start(tracked(tmp_path / "one"))
    mirror_once(tracker(), tmp_path / "two")
    (one,), (two,) = offline_runs(tmp_path / "one"), offline_runs(tmp_path / "two")
    assert one.run.run_id != two.run.run_id
    assert (one.rows("train/loss"), two.rows("train/loss")) == ([], [(10, 2.0)])


def test_a_login_to_the_server_that_wandb_uses_by_default_counts_as_a_key(tmp_path, tracker):
    from retroflow.tracking.wandb import has_key

    host = wandb.Settings().base_url.removeprefix("https://")
    assert not has_key()
    (tmp_path / "netrc").write_text(f"machine {host} login user password {'a' * 40}\n")
    assert has_key()


@pytest.mark.parametrize("log_text", [False, True])
def test_the_table_of_neighbours_is_capped_and_has_text_only_if_allowed(tmp_path, tracker, log_text):
    examples = [
        NeighbourExample(
            chunk=number,
            chunk_source="a.txt",
            rank=0,
            neighbour=-1 if number else 4,
            neighbour_source="b.txt",
            score=float("-inf") if number else 0.5,
            chunk_text=SECRET,
            neighbour_text=SECRET,
            continuation_text=SECRET,
        )
        for number in range(5)
    ]
    mirror = tracker(log_text=log_text, table_rows=3)
    mirror.start(tracked(tmp_path))
    mirror.show_neighbours(examples, 7)
    mirror.finish({})
    (run,) = offline_runs(tmp_path)
    (table,) = run.tables
    assert len(table["data"]) == 3
    assert table["data"][0][:6] == [0, "a.txt", 0, 4, "b.txt", 0.5]
    assert table["data"][1][5] is None  # no neighbour has no score
    assert ("chunk_text" in table["columns"]) == log_text
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert (SECRET.encode() in everything) == log_text


def test_the_tables_of_the_report_are_logged(tmp_path, tracker):
    mirror = tracker()
    mirror.start(tracked(tmp_path))
    mirror.show_report([ReportTable("losses", ("retrieval", "gain"), [("on", 0.5), ("off", None)])], 7)
    mirror.finish({})
    (run,) = offline_runs(tmp_path)
    (table,) = run.tables
    assert (table["columns"], table["data"]) == (["retrieval", "gain"], [["on", 0.5], ["off", None]])


def test_the_checkpoint_is_referred_to_and_not_copied(tmp_path, tracker):
    checkpoint = tmp_path / "step-00000012.ckpt"
    checkpoint.write_bytes(SECRET.encode())
    summary = {"checkpoint/path": str(checkpoint), "checkpoint/step": 12, "checkpoint/sha256": "ab"}
    mirror_once(tracker(), tmp_path, summary=summary)
    (run,) = offline_runs(tmp_path)
    artifact = run.artifacts["model"]
    assert [entry.ref for entry in artifact.manifest.contents] == [checkpoint.as_uri()]
    assert json.loads(artifact.metadata) == summary
    assert run.summary["checkpoint/sha256"] == "ab"
    others = [path for path in tmp_path.rglob("*") if path.is_file() and path != checkpoint]
    assert not [path for path in others if SECRET.encode() in path.read_bytes()]


class Stopped(BaseException):
    """Stands for a kill."""


def test_a_run_stopped_and_resumed_reads_back_as_its_own_metrics(tmp_path, tracker, monkeypatch):
    jobs = []

    def job():
        jobs.append(tiny_job(tmp_path, tracker=tracker(), validate_every=6))
        return jobs[-1]

    def stop(*arguments, **options):
        raise Stopped

    monkeypatch.setattr(fit_module, "make_job", lambda recipe: job())
    monkeypatch.setattr(fit_module, "write_final_report", stop)
    with pytest.raises(Stopped):
        fit(tiny_recipe())
    mirrored = threading.Event()  # a real kill would take the tracker's thread along; here it could still write later
    jobs[0].tracker._calls.put(mirrored.set)
    assert mirrored.wait(100)
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fit_module, "make_job", lambda recipe: job())
    result = fit(tiny_recipe(), resume=LAST)
    runs = offline_runs(result.run_folder)
    assert len(runs) == 2 and len({run.run.run_id for run in runs}) == 1
    lines = [json.loads(line) for line in (result.run_folder / "metrics.jsonl").read_text().splitlines()]
    for key in ("train/loss", "train/gradient_norm", "validation/loss_on", "validation/retrieval_gap"):
        assert runs[0].rows(key) == [(line["step"], line[key]) for line in lines if key in line]
    assert runs[0].rows("train/tokens_per_second") and runs[0].rows("train/model_flops_per_second")
    assert runs[0].config["fingerprints"] == {"chunks": "abc", "neighbours": "def"}
    assert "torch" in runs[0].config["versions"] and runs[0].config["recipe"]["neighbours"] == {"k": 2}
    # What the second process trained no more it has told again, in case the first had not written it.
    assert runs[1].rows("train/loss") == runs[0].rows("train/loss")
    # Before training the table has no losses; after the judgement it has.
    before, after = (table for run in runs for table in run.tables if "chunk" in table["columns"])
    column = before["columns"].index("loss_on")
    assert {row[column] for row in before["data"]} == {None}
    assert None not in {row[column] for row in after["data"]}
    assert runs[1].summary["validation/gain_over_off"] == result.report.gain("off")
    assert runs[1].summary["checkpoint/step"] == 12


def test_wandb_raising_while_it_logs_ends_the_mirror_and_not_the_run(tmp_path, tracker, monkeypatch, capsys):
    def raising(*arguments, **options):
        raise wandb.Error("the server is gone")

    monkeypatch.setattr(wandb.Run, "log", raising)
    monkeypatch.setattr(fit_module, "make_job", lambda recipe: tiny_job(tmp_path, tracker=tracker()))
    result = fit(tiny_recipe())
    assert result.steps == 12 and (result.run_folder / "report.json").exists()
    assert capsys.readouterr().err.count("WandbTracker failed in show_neighbours (the server is gone)") == 1


def test_wandb_hanging_in_finish_is_left_alone(tmp_path, tracker):
    program = (
        "import sys, threading, wandb\n"
        "from pathlib import Path\n"
        "from retroflow.tracking.background import GuardedTracker\n"
        "from retroflow.protocols import TrackedRun\n"
        "from retroflow.tracking.wandb import WandbTracker\n"
        "from retroflow.cli.console import end_within\n"
        "hang = lambda *arguments, **options: threading.Event().wait()\n"
        "wandb.Run.finish = wandb.Run._atexit_cleanup = hang\n"
        "tracker = WandbTracker()\n"
        "tracker.finish_seconds = -4.5\n"  # 5 s are added, so that a tracker's own limit comes first
        "mirror = GuardedTracker(tracker, start_seconds=200)\n"
        "mirror.start(TrackedRun(Path('.').absolute(), 'tiny', 'tiny', {}))\n"
        "mirror.log({'train/loss': 1.0}, 1)\n"
        "mirror.finish({})\n"
        "print('done', flush=True)\n"
        "end_within(7, seconds=5)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (7, "done\n"), result.stderr
    assert "WandbTracker has not finished" in result.stderr
