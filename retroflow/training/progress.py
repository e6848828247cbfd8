"""What a person sees while a model trains: a live line on a terminal, plain lines elsewhere, always on stderr."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_PLAIN_SECONDS = 5.0


class TrainingProgress:
    """Shows step, loss, tokens per second and time left.

    Args:
        max_steps: the step training ends at.
    """

    def __init__(self, max_steps: int) -> None:
        self._max_steps = max_steps
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._loss, self._rate = float("nan"), float("nan")
        self._start_step, self._start, self._last_line = 0, 0.0, 0.0

    def start(self, step: int) -> None:
        self._start_step, self._start, self._last_line = step, time.perf_counter(), time.perf_counter()
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[reading]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("training", total=self._max_steps, completed=step, reading="")
            self._bar.start()

    def measured(self, loss: float, tokens_per_second: float) -> None:
        """Take the newest reading."""
        self._loss, self._rate = loss, tokens_per_second

    def advance(self, step: int) -> None:
        """Show that `step` steps are done."""
        if self._bar is not None:
            reading = "" if self._rate != self._rate else f"loss {self._loss:.3f}  {self._rate:,.0f} tokens/s"
            self._bar.update(self._task, completed=step, reading=reading)
            return
        now = time.perf_counter()
        if self._rate == self._rate and (now - self._last_line >= _PLAIN_SECONDS or step == self._max_steps):
            self._last_line = now
            left = (now - self._start) / max(1, step - self._start_step) * (self._max_steps - step)
            print(
                f"step {step}/{self._max_steps}  loss {self._loss:.4f}  {self._rate:,.0f} tokens/s  "
                f"{_clock(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def note(self, step: int, values: dict[str, float]) -> None:
        """Show a quick validation estimate."""
        text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        if self._bar is not None:
            self._bar.console.print(f"step {step}  {text}")
        else:
            print(f"step {step}/{self._max_steps}  {text}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
