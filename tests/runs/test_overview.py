"""`retroflow runs`: every run is told, whatever state its files are in."""

import json
import os

import pytest
from filelock import FileLock

from retroflow.errors import UsageError
from retroflow.runs.folder import RunFolder, write_description
from retroflow.runs.metrics import last_metrics
from retroflow.runs.overview import find_runs, overview, table
from retroflow.store.sealed_json import render_sealed

REPORT = {
    "validation": {"on": {"loss": 2.0, "bits_per_byte": 1.0}, "off": {"loss": 2.5, "bits_per_byte": 1.2}},
    "gain_over_off": 0.2,
    "overlap_statement": "Overlap: 90.0% of 10 chunks.",
    "training": {"steps": 6, "max_steps": 6, "stopped_by_time": False},
}

VALUES = {"trainer": {"max_steps": 6}, "data": {"artifacts_folder": "artifacts"}}
IDENTITY = {"recipe": "seed: 1\n", "values": VALUES, "fingerprints": {"chunks": "c"}}


DESCRIPTION = {"recipe": {"trainer": {"max_steps": 6}}}


def make_run(folder, *, report=None, metrics=({"step": 3, "train/loss": 3.0},), steps=(3,), written=1000):
    (folder / "checkpoints").mkdir(parents=True)
    write_description(RunFolder(folder), IDENTITY, {})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    for step in steps:
        (folder / "checkpoints" / f"step-{step:08d}.ckpt").touch()
    if report is not None:
        (folder / "report.json").write_text(render_sealed(report, what="report"))
    for file in folder.iterdir():
        os.utime(file, (written, written))
    return folder


def test_runs_are_listed_with_the_newest_last(tmp_path):
    make_run(tmp_path / "b" / "0001", report=REPORT, written=3000)
    make_run(tmp_path / "a" / "0002", steps=(3, 5), written=2000)
    (tmp_path / "a" / "0010" / "checkpoints").mkdir(parents=True)
    os.utime(tmp_path / "a" / "0010", (1000, 1000))
    (tmp_path / "a" / "notes").mkdir()
    make_run(tmp_path / "b" / "0002", metrics=(), steps=(), written=500)
    runs = overview(tmp_path)
    assert [(run.folder.name, run.recipe, run.state, run.steps, run.max_steps) for run in runs] == [
        ("0002", "b", "empty", None, 6),
        ("0010", "a", "empty", None, None),
        ("0002", "a", "unfinished", 5, 6),
        ("0001", "b", "finished", 6, 6),
    ]
    assert (runs[-1].loss_on, runs[-1].loss_off, runs[-1].bits_per_byte, runs[-1].gain) == (2.0, 2.5, 1.0, 0.2)
    lines = table(runs)
    assert lines[0].split() == [
        "folder",
        "recipe",
        "state",
        "steps",
        "loss",
        "on",
        "loss",
        "off",
        "bits/byte",
        "gain",
        "date",
    ]
    assert lines[4].split()[1:8] == ["b", "finished", "6/6", "2.0000", "2.5000", "1.0000", "20.0%"]
    assert json.loads(json.dumps(runs[-1].to_json(), allow_nan=False))["state"] == "finished"


def test_a_renamed_run_is_a_run_and_so_is_the_folder_given(tmp_path):
    renamed = make_run(tmp_path / "a" / "good")
    assert find_runs(tmp_path) == find_runs(renamed) == [renamed]
    (tmp_path / "a").rename(tmp_path / "b")
    assert [run.recipe for run in overview(tmp_path)] == ["a"]


def test_a_link_shows_no_run_twice_and_a_loop_ends(tmp_path):
    run = make_run(tmp_path / "a" / "0001")
    (tmp_path / "a" / "best").symlink_to("0001")
    (tmp_path / "a" / "0000").symlink_to(tmp_path)
    assert find_runs(tmp_path) == [run]


def test_a_run_that_a_process_works_on_is_running(tmp_path):
    run = make_run(tmp_path / "a" / "0001")
    with FileLock(run / ".lock"):
        assert overview(tmp_path)[0].state == "running"
    assert overview(tmp_path)[0].state == "unfinished"


def test_one_changed_digit_is_seen(tmp_path):
    run = make_run(tmp_path / "a" / "0001", report=REPORT)
    for name, digits in (("report.json", ("2.5", "2.9")), ("run.json", ("6", "8")), ("recipe.yaml", ("1", "2"))):
        before = (run / name).read_bytes()
        (run / name).write_bytes(before.replace(*(digit.encode() for digit in digits)))
        (found,) = overview(run)
        assert found.state == "damaged" and name in found.problems[0] and "was changed after" in found.problems[0]
        (run / name).write_bytes(before)
    assert overview(run)[0].state == "finished"


def test_a_gain_has_a_pointer_to_its_overlap_and_is_left_out_without_one(tmp_path):
    (run,) = overview(make_run(tmp_path / "a" / "0001", report=REPORT))
    assert table([run])[2] == "How much of a gain overlap explains: retroflow runs report FOLDER"
    (bare,) = overview(make_run(tmp_path / "a" / "0002", report=REPORT | {"overlap_statement": None}))
    assert bare.gain is None and len(table([bare])) == 2


def test_a_gain_that_is_nothing_has_no_sign(tmp_path):
    (run,) = overview(make_run(tmp_path / "a" / "0001", report=REPORT | {"gain_over_off": -0.0002}))
    assert " 0.0%" in table([run])[1] and "-0.0%" not in table([run])[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", b'{"identity"', 'run.json": cannot be read (JSONDecodeError'),
        ("run.json", b"\xff", 'run.json": cannot be read (UnicodeDecodeError'),
        ("run.json", b"[]", 'run.json": cannot be read (AttributeError'),
        ("run.json", render_sealed({"identity": 3}, what="").encode(), 'run.json": not what fit writes (TypeError'),
        ("run.json", b"[" * 100_000, 'run.json": cannot be read (RecursionError'),
        ("report.json", b"{}x", 'report.json": cannot be read (JSONDecodeError'),
        ("report.json", b'{"a": 1}', 'report.json": it was changed after it was written'),
        ("report.json", render_sealed({"validation": [1]}, what="").encode(), 'report.json": not a report (TypeError'),
    ],
)
def test_damage_is_named_and_hides_no_other_run(tmp_path, name, content, message):
    damaged = make_run(tmp_path / "a" / "0001", report=REPORT)
    (damaged / name).write_bytes(content if isinstance(content, bytes) else render_sealed(content, what="").encode())
    make_run(tmp_path / "a" / "0002")
    states = {run.folder.name: run.state for run in overview(tmp_path)}
    assert states == {"0001": "damaged", "0002": "unfinished"}
    assert message in table(overview(tmp_path))[-1]


def test_a_torn_last_line_of_metrics_is_left_out(tmp_path):
    run = make_run(tmp_path / "a" / "0001")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "tr')
    assert last_metrics(run) == {"step": 3, "train/loss": 3.0}
    (run / "metrics.jsonl").write_bytes(b"\xff\n")
    assert last_metrics(run) == last_metrics(tmp_path) == {}


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UsageError, match=r'there is no folder ".*nowhere"; give the folder of the runs'):
        overview(tmp_path / "nowhere")
    assert overview(tmp_path) == []
