"""Where metrics are mirrored beside the run folder's own files, which are always written."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told about a run.

    Attributes:
        folder: the run folder; a tracker keeps its own run id there.
        name: short name of the run.
        group: what the run is compared with, the recipe's name.
        description: resolved recipe, fingerprints, versions; JSON values.
    """

    folder: Path
    name: str
    group: str
    description: dict[str, Any]


class Tracker(Protocol):
    """Mirrors a run somewhere; whatever it raises never stops the run."""

    def start(self, run: TrackedRun) -> None:
        """Begin, or go on with, the mirror of `run`."""
        ...

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Mirror values measured at `step`."""
        ...

    def finish(self, summary: dict[str, float]) -> None:
        """Mirror the final values and close."""
        ...


class NoTracker:
    """Mirrors nothing."""

    def start(self, run: TrackedRun) -> None:
        """Do nothing."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Do nothing."""

    def finish(self, summary: dict[str, float]) -> None:
        """Do nothing."""


class GuardedTracker:
    """A tracker whose first failure is reported once and ends the mirroring, never the run."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker: Tracker | None = tracker

    def start(self, run: TrackedRun) -> None:
        self._call("start", run)

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._call("log", metrics, step)

    def finish(self, summary: dict[str, float]) -> None:
        self._call("finish", summary)

    def _call(self, method: str, *arguments: object) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, method)(*arguments)
        except Exception as error:  # a mirror of whatever kind must not stop a run
            name = type(self._tracker).__name__
            self._tracker = None
            print(f"{name} failed in {method} ({error}); the run goes on without it", file=sys.stderr)
