"""The list of `retroflow runs`. Only small files are read; damaged ones are named."""

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retroflow.errors import DamagedDataError, UsageError
from retroflow.runs.checkpoint_files import checkpoint_step, list_checkpoints
from retroflow.runs.description import read_run
from retroflow.runs.folder import RunFolder
from retroflow.runs.metrics import last_metrics
from retroflow.store.held import is_held

DEEPEST = 4
"""Levels of folders that are searched for runs."""

_OF_A_NEW_RUN = {
    "checkpoints", ".lock", "recipe.yaml", "run.json", "metrics.jsonl", "metrics.csv", "throughput.jsonl"
}  # fmt: skip


@dataclass(frozen=True)
class RunSummary:
    """One line about a run.

    Attributes:
        folder: of the run.
        recipe: the recipe's name, as run.json has it; without it, the name of the folder above.
        state: "running" (a process works on it), "finished" (trained and evaluated), "unfinished" (can be resumed),
            "empty" (nothing was trained yet) or "damaged".
        steps: optimizer steps of its report, else of its newest checkpoint; None if unknown.
        max_steps: optimizer steps of its recipe.
        loss_on, loss_off: nats per token of its report, with and without retrieval; None without a report.
        bits_per_byte: of the same report, with retrieval if the model retrieves.
        gain: how much lower the loss is with retrieval than without, as a share of the latter; None if the report does
            not state the overlap.
        changed: time of the last write to one of its files, seconds since 1970.
        problems: damaged files with the reason.
    """

    folder: Path
    recipe: str
    state: str
    steps: int | None = None
    max_steps: int | None = None
    loss_on: float | None = None
    loss_off: float | None = None
    bits_per_byte: float | None = None
    gain: float | None = None
    changed: float = 0.0
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        values = asdict(self)
        date = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(self.changed))
        del values["changed"]
        return values | {"folder": str(self.folder), "date": date, "problems": list(self.problems)}


def find_runs(folder: Path) -> list[Path]:
    """Find the run folders in a folder, or the folder itself; those without a number only if they have a run.json.

    Raises:
        UsageError: there is no such folder, or it cannot be listed.
    """
    if not folder.is_dir():
        raise UsageError(f'there is no folder "{folder}"; give the folder of the runs (trainer.runs_folder).')
    try:
        return sorted(_runs_in(folder, DEEPEST, set()))
    except OSError as error:
        raise UsageError(f'"{error.filename or folder}": cannot be listed ({error.strerror}).') from error


def _runs_in(folder: Path, depth: int, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:  # through a link
        return
    seen.add(real)
    run = RunFolder(folder)
    if run.description.exists() or run.recipe.exists() or (folder.name.isdecimal() and run.checkpoints.is_dir()):
        yield folder
    elif depth:
        for below in sorted(folder.iterdir(), key=lambda path: (path.is_symlink(), path)):
            if below.is_dir() and not below.name.startswith("."):
                yield from _runs_in(below, depth - 1, seen)


def overview(folder: Path) -> list[RunSummary]:
    """Summarise every run in a folder, the newest last.

    Raises:
        UsageError: as `find_runs`.
    """
    return sorted((summarise_run(run) for run in find_runs(folder)), key=lambda run: (run.changed, run.folder))


def summarise_run(folder: Path) -> RunSummary:
    """Summarise one run, even if files are damaged."""
    run, problems = RunFolder(folder), []
    name, max_steps, report, losses = folder.absolute().parent.name, None, {}, {}
    try:
        if run.description.exists():
            described = read_run(folder)
            name, max_steps = described.name, int(described.values["trainer"]["max_steps"])
    except DamagedDataError as error:
        problems.append(str(error))
    try:
        report = run.stored_report()
        losses = _losses(report) if report else {}
    except DamagedDataError as error:
        problems.append(str(error))
    except (KeyError, TypeError, ValueError) as error:
        problems.append(f'"{run.report}": not a report ({type(error).__name__}: {error})')
    return RunSummary(
        folder=folder,
        recipe=name,
        state="damaged" if problems else _state(run),
        steps=_steps(run, report),
        max_steps=max_steps,
        changed=_changed(run),
        problems=tuple(problems),
        **losses,
    )


def is_empty_run(folder: Path) -> bool:
    """Return whether a run folder holds nothing trained, and no file that is not of fit."""
    checkpoints = RunFolder(folder).checkpoints
    trained = checkpoints.is_dir() and any(checkpoints.iterdir())
    return not trained and not last_metrics(folder) and {path.name for path in folder.iterdir()} <= _OF_A_NEW_RUN


def _losses(report: dict[str, Any]) -> dict[str, float]:
    modes = report["validation"]
    read = modes["on" if "on" in modes else "off"]
    losses = {"loss_off": float(modes["off"]["loss"]), "bits_per_byte": float(read["bits_per_byte"])}
    if "on" in modes:
        stated = report.get("overlap_statement")  # without it a gain says nothing
        losses |= {"loss_on": float(modes["on"]["loss"])} | ({"gain": float(report["gain_over_off"])} if stated else {})
    return losses


def _state(run: RunFolder) -> str:
    if is_held(run.path / ".lock"):
        return "running"
    if run.is_finished:
        return "finished"
    return "empty" if is_empty_run(run.path) else "unfinished"


def _steps(run: RunFolder, report: dict[str, Any]) -> int | None:
    saved = next(map(checkpoint_step, list_checkpoints(run.checkpoints)), None)
    training = report.get("training")
    return training.get("steps", saved) if isinstance(training, dict) else saved


def _changed(run: RunFolder) -> float:
    times = []
    for name in ("run.json", "metrics.jsonl", "report.json", "."):
        try:
            times.append(os.stat(run.path / name).st_mtime)
        except OSError:
            continue
    return max(times[:-1] or times, default=0.0)  # the folder's own time changes whenever a lock is taken


_HEADINGS = ("folder", "recipe", "state", "steps", "loss on", "loss off", "bits/byte", "gain", "date")


def table(runs: list[RunSummary]) -> list[str]:
    """Return lines for a terminal: one for each run, then damaged files."""
    rows: list[tuple[str, ...]] = [_HEADINGS]
    for run in runs:
        steps = "-" if run.steps is None else f"{run.steps:,}"
        date = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed))
        numbers = [_shown(value) for value in (run.loss_on, run.loss_off, run.bits_per_byte)]
        gain = "-" if run.gain is None else f"{round(run.gain, 3) + 0.0:.1%}"  # and no "-0.0%"
        of_all = steps if run.max_steps is None else f"{steps}/{run.max_steps:,}"
        rows.append((str(run.folder), run.recipe, run.state, of_all, *numbers, gain, date))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if any(run.gain is not None for run in runs):
        lines.append("How much of a gain overlap explains: retroflow runs report FOLDER")
    return [*lines, *(problem for run in runs for problem in run.problems)]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
