"""One run, one folder: `<runs_folder>/<recipe name>/<number>/`.

recipe.yaml         the resolved recipe, as run.json has it too
run.json            fingerprints of the artifacts, versions, device, precision; sealed with its own SHA-256
metrics.jsonl       metrics of the run; resuming cuts it back to the checkpoint, so that a resumed run ends
metrics.csv         with the same bytes as an unbroken one
throughput.jsonl    its speed, which differs every time
checkpoints/        see checkpoints.py
report.json         evaluation of the last step; the run is then finished; sealed as well
report-*.json       results of `retroflow evaluate` for other steps or values
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from retroflow.errors import DamagedDataError, RetroflowError, UsageError
from retroflow.runs.description import RECIPE_FILE, RUN_FILE, is_run_number
from retroflow.store.sealed_json import read_sealed, render_sealed, write_text


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / RECIPE_FILE

    @property
    def description(self) -> Path:
        return self.path / RUN_FILE

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def is_finished(self) -> bool:
        """Whether it is trained and evaluated: report.json is of the last step in run.json."""
        training, steps = self.reported_training(), 0
        with suppress(DamagedDataError, KeyError, TypeError, ValueError):
            steps = int(self.identity()["values"]["trainer"]["max_steps"])
        return bool(training) and (
            training["steps"] >= max(training["max_steps"], steps) or training["stopped_by_time"]
        )

    def identity(self) -> dict[str, Any]:
        """Return what the run and its checkpoints are bound to (`resuming.identity`), from run.json.

        Raises:
            DamagedDataError: there is no run.json, or it was changed.
        """
        remedy = "Restore it, or start a new run."
        try:
            stored: dict[str, Any] = read_sealed(self.description, remedy=remedy)["identity"]
        except (FileNotFoundError, KeyError) as error:
            raise DamagedDataError(f"{self.description}: cannot be read ({error!r}). {remedy}") from error
        return stored

    def stored_report(self) -> dict[str, Any]:
        """Return the content of report.json; empty if there is none.

        Raises:
            DamagedDataError: it cannot be read, or was changed.
        """
        try:
            return read_sealed(self.report, remedy=f"`retroflow evaluate {self.path}` makes it again.")
        except FileNotFoundError:
            return {}

    def reported_training(self) -> dict[str, Any]:
        """Training facts of report.json; empty without an intact report."""
        try:
            training: dict[str, Any] = self.stored_report()["training"]
            training["steps"], training["max_steps"], training["stopped_by_time"]
        except (DamagedDataError, KeyError, TypeError):
            return {}
        return training

    def lock(self, *, seconds: float = 0.0) -> FileLock:
        """Lock the run for this process; the operating system releases it when the process ends.

        Args:
            seconds: how long to wait; processes of a killed rank end within a second or two.

        Raises:
            UsageError: another process is training this run.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=seconds)
        except Timeout as error:
            raise UsageError(
                f"{self.path}: another process is working on this run; wait for it, or start a new run."
            ) from error
        return lock


def new_run(runs_folder: Path, recipe_name: str) -> RunFolder:
    """Make the folder with the next number; safe against other processes that do the same.

    Raises:
        RetroflowError: the folder cannot be made.
    """
    parent = runs_folder / recipe_name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = max((int(run.path.name) for run in list_runs(runs_folder, recipe_name)), default=0) + 1
        while True:
            try:
                (parent / f"{number:04d}").mkdir()
                break
            except FileExistsError:
                number += 1
        run = RunFolder(parent / f"{number:04d}")
        run.checkpoints.mkdir()
    except OSError as error:
        raise RetroflowError(
            f"trainer.runs_folder '{runs_folder}': no run folder can be made there ({error}); choose a folder that can "
            "be written."
        ) from error
    return run


def list_runs(runs_folder: Path, recipe_name: str) -> list[RunFolder]:
    """Return all runs of a recipe, newest number first."""
    parent = runs_folder / recipe_name
    named = [path for path in parent.glob("*") if is_run_number(path.name)] if parent.is_dir() else []
    numbered = [path for path in named if path.is_dir()]
    return [RunFolder(path) for path in sorted(numbered, key=lambda path: int(path.name), reverse=True)]


def write_description(run: RunFolder, identity: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write recipe.yaml and run.json.

    Args:
        run: the run.
        identity: identifies the run and its checkpoints (`resuming.identity`).
        facts: other facts, JSON values.

    Raises:
        RetroflowError: a file cannot be written.
    """
    if not run.recipe.exists() or run.recipe.read_bytes() != identity["recipe"].encode():
        write_text(run.recipe, identity["recipe"])
    data = identity["values"].get("data", {})
    folder = os.path.realpath(run.path)
    artifacts = os.path.realpath(os.path.expanduser(data.get("artifacts_folder", ".")))
    described = {
        "identity": dict(identity),
        "name": run.path.absolute().parent.name,
        # Relative, so that a project can be moved or mounted elsewhere.
        "artifacts_folder": os.path.relpath(artifacts, folder),
        "started_in": os.path.relpath(os.path.realpath("."), folder),
    }
    write_text(run.description, render_sealed(described | dict(facts), what=str(run.description)))


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report, sealed.

    Raises:
        RetroflowError: the file cannot be written, or a number in the report is not finite.
    """
    write_text(path, render_sealed(report, what=str(path)))


def check_new_file(path: Path) -> None:
    """Refuse a file that exists or cannot be written, before minutes of work.

    Raises:
        UsageError: one of both.
    """
    folder = path.absolute().parent
    reason = "it exists" if path.exists() else f"there is no folder {folder}" if not folder.is_dir() else ""
    if reason or not os.access(folder, os.W_OK | os.X_OK):
        reason = reason or f"{folder} cannot be written"
        raise UsageError(f"output='{path}': {reason}; give a new file.")
