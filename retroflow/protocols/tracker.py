"""The interface of trackers, which mirror metrics; the run folder's own files are always written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Summary = dict[str, float | str]


@dataclass(frozen=True)
class TrackedRun:
    """A run, as a tracker sees it.

    Attributes:
        folder: the run folder; a tracker stores its own run id there.
        name: short name of the run.
        group: the recipe's name, for comparing runs.
        description: resolved recipe, fingerprints, versions; JSON values.
    """

    folder: Path
    name: str
    group: str
    description: dict[str, Any]


@dataclass(frozen=True)
class NeighbourExample:
    """One neighbour of one validation chunk, to show to a person.

    Attributes:
        chunk: row of the chunk in the validation split.
        chunk_source: the chunk's document.
        rank: 0 for the best neighbour.
        neighbour: row of the neighbour in the database, -1 if none was found.
        neighbour_source: the neighbour's document, empty if none was found.
        score: the retriever's, higher is better, -inf if none was found.
        loss_on: nats per predicted token of the chunk with its neighbours; None before the evaluation.
        loss_off: the same without retrieval.
        chunk_text, neighbour_text, continuation_text: None unless the tracker may see text.
    """

    chunk: int
    chunk_source: str
    rank: int
    neighbour: int
    neighbour_source: str
    score: float
    loss_on: float | None = None
    loss_off: float | None = None
    chunk_text: str | None = None
    neighbour_text: str | None = None
    continuation_text: str | None = None


@dataclass(frozen=True)
class ReportTable:
    """A table of the report at the end of a run.

    Attributes:
        name: "losses", "opponents" or "overlap".
        columns: their names.
        rows: a value for each column; None where there is none.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[float | str | None]]


MakeExamples = Callable[[int, bool], Sequence[NeighbourExample]]
"""(maximum number of rows, whether they may contain text) -> examples."""


@runtime_checkable
class Tracker(Protocol):
    """Mirrors a run somewhere; it is called from a thread of its own, and whatever it does never stops the run.

    Inherit from it and write what you need; every method does nothing until then.

    Attributes:
        table_rows: maximum rows of the table of neighbours; 0 for no table.
        log_text: whether it may see the text of chunks.
        finish_seconds: time limit for `finish`.
    """

    table_rows: int = 0
    log_text: bool = False
    finish_seconds: float = 60.0

    def start(self, run: TrackedRun) -> None:
        """Begin the mirror of `run`, or continue it."""
        return  # not empty, or mypy takes the method for abstract

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Mirror values measured at `step`; a resumed run sends the last lines before its checkpoint again."""
        return

    def show_neighbours(self, examples: Sequence[NeighbourExample], step: int) -> None:
        """Show neighbours of validation chunks; called when a run begins and when it was evaluated."""
        return

    def show_report(self, tables: Sequence[ReportTable], step: int) -> None:
        """Show the tables of the report; called when a run was evaluated."""
        return

    def finish(self, summary: Summary) -> None:
        """Mirror the final values and close."""
        return
