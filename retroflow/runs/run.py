"""A run as the Python API hands it out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroflow.errors import UsageError


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        folder: the run folder (docs/training.md lists its files).
    """

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def step(self) -> int:
        """Optimizer steps of the newest checkpoint, 0 if there is none."""
        from retroflow.runs.checkpoint_files import checkpoint_step, list_checkpoints
        from retroflow.runs.folder import RunFolder

        checkpoints = list_checkpoints(RunFolder(self.folder).checkpoints)
        return max((checkpoint_step(path) for path in checkpoints), default=0)

    @property
    def is_finished(self) -> bool:
        """Whether training has ended and the run was evaluated."""
        from retroflow.runs.folder import RunFolder

        return RunFolder(self.folder).is_finished

    @property
    def report(self) -> dict[str, Any] | None:
        """The content of report.json: losses with retrieval on, off, shuffled and random; None before there is one."""
        from retroflow.runs.folder import RunFolder

        return RunFolder(self.folder).stored_report() or None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: what was measured at each logged step."""
        from retroflow.runs.metrics import read_metrics

        return read_metrics(self.folder)


def folder_of(run: Run | str | Path) -> Path:
    """Return the folder of a run, or the path itself.

    Raises:
        UsageError: something else was given.
    """
    if not isinstance(run, Run | str | Path):
        raise UsageError(f"run: {type(run).__name__} given; a Run or the path of a run folder is needed.")
    return run.folder if isinstance(run, Run) else Path(run)
