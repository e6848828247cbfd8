"""Where metrics are mirrored beside the run folder's own files, which are always written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Summary = dict[str, float | str]


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


@dataclass(frozen=True)
class NeighbourExample:
    """One neighbour of one validation chunk, for a person to look at.

    Attributes:
        chunk: row of the chunk in the validation split.
        chunk_source: document the chunk is from.
        rank: 0 for the best neighbour.
        neighbour: row of the neighbour in the database, -1 where none was found.
        neighbour_source: document the neighbour is from, empty where there is none.
        score: the retriever's, higher is better, -inf where there is none.
        loss_on: nats per predicted token of the chunk with its neighbours; None before the model was judged.
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


MakeExamples = Callable[[int, bool], Sequence[NeighbourExample]]
"""(most rows, whether text may be in them) -> examples."""


@runtime_checkable
class Tracker(Protocol):
    """Mirrors a run somewhere; it is called from a thread of its own, and whatever it does never stops the run.

    Inherit from it and write what you need; every method does nothing until then.

    Attributes:
        table_rows: most rows of the table of neighbours; 0 for none.
        log_text: whether the text of chunks may be given to it.
        finish_seconds: how long `finish` is waited for.
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

    def finish(self, summary: Summary) -> None:
        """Mirror the final values and close."""
        return
