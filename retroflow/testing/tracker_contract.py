"""TrackerContract: what every tracker owes, as a pytest class to subclass.

    class TestMyTracker(TrackerContract):
        def make_tracker(self): return MyTracker()

One test a rule, `test_rule[mirrors_a_run]`; docs/writing-a-tracker.md goes through them. The rules are the public
functions of this module. They say what must not fail: only you can see what your tracker shows.
"""

import math
import sys
import threading
from pathlib import Path
from typing import Any

from retroflow.protocols import NeighbourExample, Summary, TrackedRun, Tracker, missing_members
from retroflow.testing.case import Case
from retroflow.testing.contract import Contract
from retroflow.testing.effects import changed_since, standard_output, state_of_process
from retroflow.testing.readable_options import check_keyword_only, check_readable

EXAMPLES = [
    NeighbourExample(0, "a.txt", 0, 3, "b.txt", -0.5),
    NeighbourExample(0, "a.txt", 1, -1, "", -math.inf, loss_on=1.5, loss_off=1.75),
    NeighbourExample(1, "c.txt", 0, 4, "d.txt", 0.25, 1.0, 2.0, "some text", "gr\u00fc\u00dfe", ""),
]
SUMMARY: Summary = {"validation/loss_on": 1.25, "checkpoint/path": "/runs/a/0001", "validation/gain_over_off": math.nan}


def implements_the_protocol(case: Case) -> None:
    lacking = missing_members(case.suite.make_tracker(), Tracker)
    assert not lacking, f"it lacks {lacking}; inherit from retroflow.Tracker, whose methods do nothing"


def takes_its_options_by_keyword(case: Case) -> None:
    check_keyword_only(type(case.suite.make_tracker()))


def has_options_that_a_recipe_can_read(case: Case) -> None:
    """Recipes read options from the source: one that they cannot read does not exist for them."""
    check_readable(type(case.suite.make_tracker()))


def says_what_it_shows(case: Case) -> None:
    tracker = case.suite.make_tracker()
    assert type(tracker.table_rows) is int and tracker.table_rows >= 0, f"table_rows is {tracker.table_rows!r}"
    assert isinstance(tracker.log_text, bool), f"log_text is {tracker.log_text!r}"
    assert 0 < tracker.finish_seconds < math.inf, f"finish_seconds is {tracker.finish_seconds!r}"


def mirrors_a_run(case: Case) -> None:
    _mirror(case.suite.make_tracker(), case.scratch(), range(1, 4))


def continues_a_run(case: Case) -> None:
    """Another process continues the run folder, and sends some steps again."""
    folder = case.scratch()
    _mirror(case.suite.make_tracker(), folder, range(1, 4))
    _mirror(case.suite.make_tracker(), folder, range(3, 6))


def takes_metrics_that_are_not_finite(case: Case) -> None:
    tracker = case.suite.make_tracker()
    tracker.start(_run(case.scratch()))
    tracker.log({"train/loss": math.nan, "train/gradient_norm": math.inf}, 1)
    tracker.finish({})


def shows_no_neighbours_if_there_are_none(case: Case) -> None:
    tracker = case.suite.make_tracker()
    tracker.start(_run(case.scratch()))
    tracker.show_neighbours([], 0)
    tracker.finish(dict(SUMMARY))


def works_in_a_thread(case: Case) -> None:
    """It is made in one thread and called in another."""
    tracker, folder, faults = case.suite.make_tracker(), case.scratch(), []

    def mirror() -> None:
        try:
            _mirror(tracker, folder, range(1, 4))
        except BaseException as error:  # a thread's exception would be printed and forgotten
            faults.append(error)

    thread = threading.Thread(target=mirror)
    thread.start()
    thread.join()
    assert not faults, f"called from another thread than it was made in, it failed: {faults[0]!r}"


def leaves_what_it_is_given_as_it_was(case: Case) -> None:
    tracker, metrics, summary = case.suite.make_tracker(), {"train/loss": 1.0}, dict(SUMMARY)
    run = _run(case.scratch())
    tracker.start(run)
    tracker.log(metrics, 1)
    tracker.finish(summary)
    changed = metrics != {"train/loss": 1.0} or list(summary) != list(SUMMARY) or run.description != _DESCRIPTION
    assert not changed, "it changed the metrics, the summary or the description that it was given"


def leaves_the_process_as_it_was(case: Case) -> None:
    """Nothing on stdout, which belongs to `--json`; no global generator used or seeded, no setting changed."""
    _mirror(case.suite.make_tracker(), case.scratch(), range(1, 3))  # what is imported at the first call may be
    with standard_output() as written:
        before = state_of_process()
        _mirror(case.suite.make_tracker(), case.scratch(), range(1, 3))
        said, changed = written(), changed_since(before)
    assert not said, f"it prints to stdout: {said[:200]!r}; log to stderr, or nothing"
    assert not changed, f"it changed {' and '.join(changed)}; put settings back"


_DESCRIPTION: dict[str, Any] = {"recipe": {"seed": 1, "corpus": {"path": "a.jsonl"}}, "versions": {"torch": "2.0"}}


def _run(folder: Path) -> TrackedRun:
    return TrackedRun(folder=folder, name="tiny-0001", group="tiny", description=dict(_DESCRIPTION))


def _mirror(tracker: Tracker, folder: Path, steps: range) -> None:
    tracker.start(_run(folder))
    if tracker.table_rows:
        tracker.show_neighbours(EXAMPLES[: tracker.table_rows], 0)
    for step in steps:
        tracker.log({"train/loss": 4.0 / step, "train/tokens": 1024.0 * step}, step)
    if tracker.table_rows:
        tracker.show_neighbours(EXAMPLES[: tracker.table_rows], steps[-1])
    tracker.finish(dict(SUMMARY))


class TrackerContract(Contract):
    """Subclass it as a class whose name starts with Test, and override `make_tracker`."""

    rule_modules = (sys.modules[__name__],)

    def make_tracker(self) -> Tracker:
        """Return a new tracker, always with the same options. Called in other processes: use no fixture."""
        raise NotImplementedError("override make_tracker() in your subclass of TrackerContract")
