"""What is shown while something runs: lines and progress, through the logger "retroflow", to stderr by default.

`logging.getLogger("retroflow").setLevel(logging.WARNING)` silences all of it; another handler sends it elsewhere.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

FIRST_SECONDS = 1.0
LINE_SECONDS = 5.0

Advance = Callable[[int], None]


class _Stderr(logging.Handler):
    """Prints to what sys.stderr is at the time; a terminal or a pipe that is gone stops nothing."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            print(record.getMessage(), file=sys.stderr, flush=True)


def logger() -> logging.Logger:
    """The logger that everything is shown through; it prints plain lines on stderr if nobody has set it up."""
    found = logging.getLogger("retroflow")
    if not found.handlers:
        found.addHandler(_Stderr())
        found.propagate = False  # else a handler of the root logger would show every line again
    if found.level == logging.NOTSET:
        found.setLevel(logging.INFO)
    return found


def say(text: str) -> None:
    """Show one line."""
    logger().info("%s", text)


def is_shown() -> bool:
    """Whether lines and progress are shown at all."""
    return logger().isEnabledFor(logging.INFO)


DESCRIPTOR_OF_RESULTS: ContextVar[int] = ContextVar("descriptor_of_results", default=1)
"""Where processes that this one starts print results: stdout, also while a command has led descriptor 1 elsewhere."""


@contextmanager
def progress(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Show how far a loop is; nothing is shown of work that ends within a second.

    Args:
        description: what is done, "embed train chunks".
        total: how many units there are, None if that is not known.
        unit: what is counted, in the plural.

    Yields:
        A function to call with the units done since the last call.
    """
    if is_shown() and sys.stderr.isatty():
        with _bar(description, total, unit) as advance:
            yield advance
    else:
        yield _Lines(description, total, unit).advance


@contextmanager
def _bar(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:,.0f} {unit}/s", style="progress.data.speed")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}" + (f"/{total:,}" if total is not None else "")),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(description, total=total)
    started, shown = time.monotonic(), False

    def advance(count: int) -> None:
        nonlocal shown
        bar.advance(task, count)
        if not shown and time.monotonic() - started > FIRST_SECONDS:
            shown = True
            bar.start()

    try:
        yield advance
    finally:
        if shown:
            bar.stop()


class _Lines:
    """Plain progress lines for logs and pipes."""

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done = 0
        self._started = time.monotonic()
        self._next = self._started + FIRST_SECONDS

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now < self._next or self._done == self._total:
            return
        self._next = now + LINE_SECONDS
        rate = self._done / max(now - self._started, 1e-9)
        line = f"{self._description}: {self._done:,}"
        if self._total is not None:
            line += f"/{self._total:,}"
        line += f" {self._unit}, {rate:,.0f}/s"
        if self._total is not None and rate > 0:
            line += f", {(self._total - self._done) / rate:,.0f} s left"
        say(line)


@contextmanager
def saying_if_slow(text: str, *, seconds: float = 3.0) -> Iterator[None]:
    """Say what is being done if it takes long."""
    timer = threading.Timer(seconds, say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
