"""Call the tracker from a background thread, so that it can neither stop nor slow training."""

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from retroflow.console import say
from retroflow.protocols import MakeExamples, ReportTable, Summary, TrackedRun, Tracker

_WAITING_CALLS = 1000
"""Calls that may wait for a slow tracker; further ones are dropped."""

_START_SECONDS = 10.0
"""Time limit for `start` before training begins without it; its messages then appear before the first step."""

_SETTLE_SECONDS = 5.0
"""Time that a tracker gets beyond its `finish_seconds`, so that its own limit ends it first."""


class NoTracker(Tracker):
    """Mirrors nothing."""


class GuardedTracker:
    """Calls a tracker in order from a separate thread.

    Its first failure is reported once and ends the mirroring, never the run. For a tracker that hangs, the run waits
    for a limited time at the start and at the end.

    Args:
        tracker: the tracker.
        start_seconds: time limit for `start` before the run continues without waiting.
    """

    def __init__(self, tracker: Tracker, *, start_seconds: float = _START_SECONDS) -> None:
        self._tracker = tracker
        self._name = type(tracker).__name__
        self._start_seconds = start_seconds
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING_CALLS)
        self._thread: threading.Thread | None = None
        self._over = isinstance(tracker, NoTracker)
        self._left_out = 0

    def start(self, run: TrackedRun) -> None:
        """Start the tracker; returns when it has started or after a few seconds, whichever is first."""
        if self._over:
            return
        started = threading.Event()

        def begin() -> None:
            try:
                self._call(self._tracker.start, run)
            finally:
                started.set()

        self._calls.put(begin)
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()
        if not started.wait(self._start_seconds):
            say(f"{self._name} has not started after {self._start_seconds:g} s; the run continues")

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log values; returns at once."""
        self._later(self._tracker.log, metrics, step)

    def show_neighbours(self, make: MakeExamples, step: int) -> None:
        """Show neighbours of validation chunks if the tracker has a table; with text only if it may see text."""
        rows = self._tracker.table_rows
        if self._over or rows < 1:
            return
        try:
            # Not in the thread: the examples read the run's data.
            examples = make(rows, self._tracker.log_text)
        except Exception as error:  # the table is optional; a run must not end because of it
            say(f"the table of neighbours cannot be made ({error}); the run continues without it")
            return
        self._later(self._tracker.show_neighbours, examples, step)

    def show_report(self, tables: Sequence[ReportTable], step: int) -> None:
        """Show the tables of the report; returns at once."""
        self._later(self._tracker.show_report, tables, step)

    def finish(self, summary: Summary) -> None:
        """Log the final values and close; returns when that is done or the time limit is over."""
        if self._thread is None:
            return
        self._later(self._tracker.finish, summary)
        with suppress(queue.Full):  # then its thread hangs; as a daemon it ends with the process
            self._calls.put_nowait(None)
        seconds = self._tracker.finish_seconds
        self._thread.join(seconds + _SETTLE_SECONDS)
        if self._thread.is_alive() and not self._over:
            say(f"{self._name} has not finished after {seconds:g} s and is ended; metrics.jsonl has everything")
        if self._left_out:
            say(f"{self._name} was too slow, and {self._left_out:,} calls were dropped; metrics.jsonl has everything")
        self._over, self._thread = True, None

    def _later(self, method: Callable[..., None], *arguments: Any) -> None:
        if self._over or self._thread is None:
            return
        try:
            self._calls.put_nowait(lambda: self._call(method, *arguments))
        except queue.Full:
            self._left_out += 1

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def _call(self, method: Callable[..., None], *arguments: Any) -> None:
        if self._over:
            return
        try:
            method(*arguments)
        except BaseException as error:  # no tracker may stop a run, not even by SystemExit
            self._over = True
            reason = str(error) or type(error).__name__
            say(f"{self._name} failed in {method.__name__} ({reason}); the run continues without it")
