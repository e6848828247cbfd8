"""Messages and progress of running work, through the logger "retroflow", to stderr by default.

`logging.getLogger("retroflow").setLevel(logging.WARNING)` silences both. Another handler sends them elsewhere.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

FIRST_SECONDS = 1.0
LINE_SECONDS = 5.0

Advance = Callable[[int], None]

_BARS: ContextVar["Progress | None"] = ContextVar("bars", default=None)
"""The bars that are shown, for those inside them."""


class _Stderr(logging.Handler):
    """Prints to the current sys.stderr; a closed terminal or pipe is ignored."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            print(record.getMessage(), file=sys.stderr, flush=True)


def logger() -> logging.Logger:
    """Return the logger for all output; without handlers it gets one that prints plain lines on stderr."""
    found = logging.getLogger("retroflow")
    if not found.handlers:
        found.addHandler(_Stderr())
        found.propagate = False  # or a handler of the root logger would repeat every line
    if found.level == logging.NOTSET:
        found.setLevel(logging.INFO)
    return found


def say(text: str) -> None:
    """Show one line."""
    logger().info("%s", text)


def is_shown() -> bool:
    """Return whether messages and progress are shown at all."""
    return logger().isEnabledFor(logging.INFO)


DESCRIPTOR_OF_RESULTS: ContextVar[int] = ContextVar("descriptor_of_results", default=1)
"""Descriptor on which child processes print results: stdout, also while a command has redirected descriptor 1."""


@contextmanager
def progress(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Show the progress of a loop; work that ends within a second shows nothing.

    Args:
        description: the work, such as "embed train chunks".
        total: number of units, None if unknown.
        unit: name of the units, in the plural.

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
    """Show a bar; one inside another is a line below it."""
    outer = _BARS.get()
    bars = outer or _bars()
    of = "" if total is None else f"/{total:,}"
    task = bars.add_task(description, total=total, unit=unit, of=of, visible=False)
    token, started = _BARS.set(bars), time.monotonic()

    def advance(count: int) -> None:
        bars.advance(task, count)
        if time.monotonic() - started > FIRST_SECONDS:
            bars.update(task, visible=True)
            bars.start()

    try:
        yield advance
    finally:
        _BARS.reset(token)
        bars.remove_task(task)
        if outer is None and bars.live.is_started:
            bars.stop()


def _bars() -> "Progress":
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
            return Text(f"{task.speed or 0:,.0f} {task.fields['unit']}/s", style="progress.data.speed")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}{task.fields[of]}"),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


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
    """Show a line if the body takes longer than `seconds`."""
    timer = threading.Timer(seconds, say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
