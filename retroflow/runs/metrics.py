"""metrics.jsonl and metrics.csv: the metrics of a run, appended line by line, cut back on resume.

A line depends only on seed, data and step and has no times, so the file of a resumed run equals that of an unbroken one
byte for byte. Times are in throughput.jsonl.
"""

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from retroflow.errors import RetroflowError
from retroflow.runs.held_folder import HeldFolder
from retroflow.store.atomic import write_file
from retroflow.store.sealed_json import strict_json

COLUMNS = (
    "step",
    "train/loss",
    "train/learning_rate",
    "train/gradient_norm",
    "train/tokens",
    "validation/loss_on",
    "validation/loss_off",
    "validation/retrieval_gap",
)
"""Columns of metrics.csv; a line of metrics.jsonl has the ones measured at its step. Losses are nats per token."""


class MetricsLog:
    """The three files of a run that grow while it trains.

    Args:
        folder: the run folder.
        step: the last valid step; lines of later steps, and an incomplete last line, are removed.

    Raises:
        RetroflowError: a file cannot be written, or the folder was renamed or deleted; also in every method.
    """

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        self._folder = folder
        self._held = HeldFolder(folder)
        paths = [folder / name for name in ("metrics.jsonl", "metrics.csv", "throughput.jsonl")]
        try:
            _cut_jsonl(paths[0], step)
            _cut_csv(paths[1], step)
            _cut_jsonl(paths[2], step)
            self._jsonl, self._csv, self._throughput = [path.open("a", encoding="utf-8", newline="") for path in paths]
        except OSError as error:
            raise RetroflowError(f"{folder}: metrics cannot be written ({error}).") from error

    def append(self, step: int, values: dict[str, float]) -> None:
        """Add the metrics of `step`; the names in `values` are among COLUMNS.

        Raises:
            RetroflowError: a value is not finite, or the file cannot be written.
        """
        line = {"step": step, **values}
        self._write(self._jsonl, strict_json(line, what=f"{self._folder / 'metrics.jsonl'}, step {step}") + "\n")
        self._write(self._csv, _csv_line(line.get(column, "") for column in COLUMNS))

    def append_throughput(self, step: int, values: dict[str, float]) -> None:
        """Add the speed of the run up to `step`."""
        line = strict_json({"step": step, **values}, what=f"{self._folder / 'throughput.jsonl'}, step {step}")
        self._write(self._throughput, line + "\n")

    def sync(self) -> None:
        """Fsync all lines; called before a checkpoint that relies on them."""
        self._held.check()
        for file in (self._jsonl, self._csv, self._throughput):
            with self._disk_errors():
                file.flush()
                os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files; every line was flushed when it was written."""
        for file in (self._jsonl, self._csv, self._throughput):
            with suppress(OSError):
                file.close()
        self._held.close()

    def _write(self, file: IO[str], line: str) -> None:
        self._held.check()
        with self._disk_errors():
            file.write(line)
            file.flush()

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RetroflowError(
                f"{self._folder}: metrics cannot be written ({error}); free space, then continue with resume='last'."
            ) from error


def read_metrics(folder: Path, *, name: str = "metrics.jsonl", most: int | None = None) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, oldest first; damaged lines are left out.

    Args:
        folder: the run folder.
        name: of the file; "throughput.jsonl" has the run's speed.
        most: read that many of the last lines only.

    Raises:
        OSError: the file is there and cannot be read.
    """
    lines = _lines(folder / name)
    return [values for values in map(_parsed, lines[-most:] if most else lines) if "step" in values]


def last_metrics(folder: Path) -> dict[str, Any]:
    """The last line of a run's metrics.jsonl; empty if there is none, or if it cannot be read."""
    with suppress(OSError):
        return next(iter(read_metrics(folder, most=1)), {})
    return {}


def _lines(path: Path) -> list[str]:
    # Bytes that a failing disk has changed are no reason to stop; the line is kept or removed.
    text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""
    return [line + "\n" for line in text.split("\n")[:-1]]  # after the last newline is an incomplete line


def _csv_line(values: object) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)  # type: ignore[arg-type]
    return line.getvalue()


def _cut_jsonl(path: Path, step: int) -> None:
    _rewrite(path, "".join(line for line in _lines(path) if _parsed(line).get("step", step + 1) <= step))


def _parsed(line: str) -> dict[str, Any]:
    """The object on a line with a whole number for its step; empty for any other line."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) and isinstance(values.get("step"), int) else {}


def _cut_csv(path: Path, step: int) -> None:
    lines = _lines(path)
    kept = [line for line in lines[1:] if line.split(",", 1)[0].isdecimal() and int(line.split(",", 1)[0]) <= step]
    _rewrite(path, ",".join(COLUMNS) + "\n" + "".join(kept))


def _rewrite(path: Path, text: str) -> None:
    write_file(path, text.encode(errors="surrogateescape"))
