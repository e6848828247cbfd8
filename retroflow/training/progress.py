"""Progress of training on stderr: a live line on a terminal, plain lines elsewhere."""

import time
from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from retroflow.console import is_shown, say

_SHORTEST, _LONGEST, _SHARE = 5.0, 60.0, 0.05
"""Limits of the seconds between plain lines, which are a twentieth of the time since the start."""


class TrainingProgress:
    """Shows step, loss, tokens per second and time left; the first step is shown at once.

    Args:
        max_steps: the last step.
    """

    def __init__(self, max_steps: int) -> None:
        self._max_steps = max_steps
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._loss: float | None = None
        self._rate: float | None = None
        self._first_step, self._began, self._last_line = 0, 0.0, 0.0

    def start(self, step: int) -> None:
        """Begin at `step` finished steps."""
        self._first_step, self._began = step, time.perf_counter()
        self._last_line = self._began
        if is_shown() and self._console.is_terminal:
            self._bar = Progress(
                BarColumn(),
                # On a narrow terminal the steps are the last column to be cut.
                MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(self._max_steps)) + 1)),
                TextColumn("{task.fields[reading]}"),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("training", total=self._max_steps, completed=step, reading="first step ...")
            self._bar.start()

    def first_step_done(self, step: int, loss: float) -> None:
        """Show the first step of this process.

        The clock starts here, because the first step includes one-time work (compiling, reading files).
        """
        took = time.perf_counter() - self._began
        self._loss = loss
        self._first_step, self._began = step, time.perf_counter()
        self._last_line = self._began
        if self._bar is None:
            say(f"step {step:,}/{self._max_steps:,}  loss {loss:.4f}  first step took {took:.1f} s")

    def measured(self, loss: float, tokens_per_second: float) -> None:
        """Take the newest measurement."""
        self._loss, self._rate = loss, tokens_per_second

    def advance(self, step: int) -> None:
        """Show that `step` steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, reading=self._reading(step))
            return
        now = time.perf_counter()
        wait = min(_LONGEST, max(_SHORTEST, _SHARE * (now - self._began)))
        is_last = step == self._max_steps and self._rate is not None
        if now - self._last_line >= wait or is_last:
            self._last_line = now
            say(f"step {step:,}/{self._max_steps:,}  {self._reading(step)}")

    def note(self, step: int, values: dict[str, float]) -> None:
        """Show a quick validation estimate."""
        text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        if self._bar is not None:
            with suppress(OSError):  # as `say`
                self._bar.console.print(f"step {step:,}  {text}")
        else:
            say(f"step {step:,}/{self._max_steps:,}  {text}")

    def stop(self) -> None:
        """Remove the live line."""
        if self._bar is not None:
            with suppress(OSError):
                self._bar.stop()
            self._bar = None

    def _reading(self, step: int) -> str:
        parts = []
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4f}")
        if self._rate is not None:
            parts.append(f"{self._rate:,.0f} tokens/s")
        if step > self._first_step:
            left = (time.perf_counter() - self._began) / (step - self._first_step) * (self._max_steps - step)
            parts.append(f"{clock(left)} left")
        return "  ".join(parts)


def clock(seconds: float) -> str:
    """Write seconds as 1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
