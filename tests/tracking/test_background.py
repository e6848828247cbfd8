"""No tracker, however it fails, stops or slows a run."""

import subprocess
import sys
import threading
import time

import pytest

from retroflow.protocols import NeighbourExample, TrackedRun, Tracker
from retroflow.tracking.background import GuardedTracker

EXAMPLE = NeighbourExample(chunk=0, chunk_source="a", rank=0, neighbour=1, neighbour_source="b", score=0.5)


class Recording(Tracker):
    """Notes its calls; fails or hangs in one of them."""

    finish_seconds = 0.2

    def __init__(self, *, fails=None, hangs=None, error=None):
        self.calls, self.fails, self.hangs, self.error = [], fails, hangs, error or ConnectionError("gone")
        self.released = threading.Event()

    def _called(self, method, *arguments):
        self.calls.append((method, *arguments))
        if method == self.hangs:
            self.released.wait(600)
        if method == self.fails:
            raise self.error

    def start(self, run):
        self._called("start")

    def log(self, metrics, step):
        self._called("log", step)

    def finish(self, summary):
        self._called("finish", summary)


class Showing(Recording):
    """Shows neighbours, too."""

    table_rows, log_text = 7, False

    def show_neighbours(self, examples, step):
        self._called("show", list(examples), step)


@pytest.fixture
def tracked(tmp_path):
    return TrackedRun(folder=tmp_path, name="tiny", group="tiny", description={})


def whole_run(tracker, tracked, *, start_seconds=5.0, steps=5):
    """Call a guarded tracker as a run does; returns the seconds the run spent in it."""
    guarded = GuardedTracker(tracker, start_seconds=start_seconds)
    began = time.perf_counter()
    guarded.start(tracked)
    for step in range(steps):
        guarded.log({"train/loss": 1.0}, step)
    guarded.finish({"validation/gain": 0.1})
    return time.perf_counter() - began


def test_calls_arrive_once_and_in_order(tracked):
    tracker = Recording()
    whole_run(tracker, tracked)
    assert tracker.calls == [("start",), *(("log", step) for step in range(5)), ("finish", {"validation/gain": 0.1})]


@pytest.mark.parametrize("method", ["start", "log", "finish"])
@pytest.mark.parametrize("error", [ConnectionError("gone"), SystemExit(3), KeyboardInterrupt("gone"), TimeoutError()])
def test_a_failure_is_told_once_and_ends_the_mirroring(tracked, capsys, method, error):
    tracker = Recording(fails=method, error=error)
    whole_run(tracker, tracked)
    assert tracker.calls[-1][0] == method and [call[0] for call in tracker.calls].count(method) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"Recording failed in {method} ({str(error) or 'TimeoutError'}); the run continues without it"
    ]


@pytest.mark.parametrize("method", ["start", "log", "finish"])
def test_a_hanging_tracker_is_left_alone(tracked, capsys, method):
    tracker = Recording(hangs=method)
    tracker.finish_seconds = -4.9  # 5 s are added, so that a tracker's own limit comes first
    took = whole_run(tracker, tracked, start_seconds=0.1)
    tracker.released.set()
    assert took < 60  # 0.2 s of waiting at most; the rest is for a busy machine, and it hangs for 600
    assert "is ended; metrics.jsonl has everything" in capsys.readouterr().err


def test_logging_never_waits_however_slow_the_tracker_and_the_loss_is_told(tracked, capsys):
    tracker = Recording(hangs="log")
    tracker.finish_seconds = -4.9
    took = whole_run(tracker, tracked, steps=3000)
    tracker.released.set()
    assert took < 60
    assert "too slow, and 2,0" in capsys.readouterr().err  # 3,000 calls less 1,000 that wait


def test_neighbours_are_made_with_the_trackers_own_limits(tracked):
    asked = []

    def make(rows, with_text):
        asked.append((rows, with_text))
        return [EXAMPLE]

    for tracker, expected in ((Showing(), [(7, False)]), (Recording(), [])):
        asked.clear()
        guarded = GuardedTracker(tracker)
        guarded.start(tracked)
        guarded.show_neighbours(make, 3)
        guarded.finish({})
        assert asked == expected
        assert (("show", [EXAMPLE], 3) in tracker.calls) == bool(expected)


def test_examples_that_cannot_be_made_cost_the_table_only(tracked, capsys):
    def broken(rows, with_text):
        raise ValueError("no tokenizer")

    tracker = Showing()
    guarded = GuardedTracker(tracker)
    guarded.start(tracked)
    guarded.show_neighbours(broken, 0)
    guarded.log({}, 1)
    guarded.finish({})
    assert [call[0] for call in tracker.calls] == ["start", "log", "finish"]
    assert "the table of neighbours cannot be made (no tokenizer)" in capsys.readouterr().err


def test_a_process_ends_although_its_tracker_hangs():
    program = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from tests.tracking.test_background import Recording, whole_run\n"
        "from retroflow.protocols import TrackedRun\n"
        "tracker = Recording(hangs='finish'); tracker.finish_seconds = -4.9; tracker.released = threading.Event()\n"
        "tracker.released.wait = lambda seconds: threading.Event().wait()\n"
        "whole_run(tracker, TrackedRun(Path('.'), 'tiny', 'tiny', {}))\n"
        "print('done'); sys.exit(7)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (7, "done\n")
