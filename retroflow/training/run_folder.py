"""One run, one folder: `<runs_folder>/<recipe name>/<number>/`.

recipe.yaml         the resolved recipe
run.json            fingerprints of the artifacts, versions, device, precision
metrics.jsonl       what the run computed; resuming cuts it back to the checkpoint, so that a resumed run ends
metrics.csv         with the same bytes as an unbroken one
throughput.jsonl    how fast it went, which differs every time
checkpoints/        see checkpoints.py
report.json         the proof; one of the last step means that the run is finished
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from retroflow.errors import RecipeError, RetroflowError
from retroflow.store.atomic import write_file


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def description(self) -> Path:
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its end and judged; an unfinished run can have a report by `evaluate`."""
        try:
            training = json.loads(self.report.read_text(encoding="utf-8"))["training"]
            return bool(training["steps"] >= training["max_steps"] or training["stopped_by_time"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def lock(self, *, seconds: float = 0.0) -> FileLock:
        """Take the run for this process; the operating system gives it back however the process ends.

        Args:
            seconds: how long to wait for it; processes that a killed rank has left behind end within a second or two.

        Raises:
            RecipeError: another process is training this run.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=seconds)
        except Timeout as error:
            raise RecipeError(
                f"{self.path}: another process is working on this run; wait for it, or start a new run"
            ) from error
        return lock


def check_runs_folder(runs_folder: Path) -> None:
    """Find out before an hour of preparation, and without making anything, whether runs can be kept there.

    Raises:
        RetroflowError: the folder, or the nearest one above it that exists, cannot be written.
    """
    existing = next(path for path in (runs_folder.absolute(), *runs_folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "cannot be written" if existing.is_dir() else "is not a folder"
        raise RetroflowError(
            f"trainer.runs_folder '{runs_folder}': {existing} {reason}; choose a folder that can be written"
        )


def new_run(runs_folder: Path, recipe_name: str) -> RunFolder:
    """Make the folder with the next number; safe against others who do the same.

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
            "be written"
        ) from error
    return run


def list_runs(runs_folder: Path, recipe_name: str) -> list[RunFolder]:
    """All runs of a recipe, newest number first."""
    parent = runs_folder / recipe_name
    numbered = [path for path in parent.glob("*") if path.is_dir() and path.name.isdigit()] if parent.is_dir() else []
    return [RunFolder(path) for path in sorted(numbered, key=lambda path: int(path.name), reverse=True)]


def write_json(path: Path, value: object) -> None:
    """Write a small JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a small text file whole or not at all.

    Raises:
        RetroflowError: the file cannot be written.
    """
    try:
        write_file(path, text.encode())
    except OSError as error:
        raise RetroflowError(f"{path}: cannot be written ({error}); free space or make the folder writable") from error
