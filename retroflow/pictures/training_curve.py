"""Losses of several runs over training tokens and over seconds of training, from their files.

A run with retrieval and one without are compared where both have seen as many tokens, and where both were trained for
as many seconds. Their numbers of parameters stand beside that.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.comparison.curve_file import CURVES_FOLDER, Curve
from retroflow.errors import UsageError
from retroflow.runs.folder import RunFolder
from retroflow.runs.metrics import read_metrics

EQUAL_SHARE = 0.01
"""Numbers of parameters that differ by no more are called equal."""

_SAME_TEXT = ("trainer.validation_batches", "trainer.eval_batch_size", "data.sequence_chunks")

Places = NDArray[np.float64]


@dataclass(frozen=True)
class TrainedRun:
    """What the files of a run say of its training.

    Attributes:
        folder: of the run.
        retrieval: whether it was trained with retrieval.
        parameters: of the model.
        places: "tokens" and "seconds" -> float64 [v], seen when a validation loss was measured.
        losses: "on" and "off" -> float64 [v], NaN where it was not measured.
        overlap_statement: of its report; None without one.
        text: what decides on which text the losses were measured.
    """

    folder: Path
    retrieval: bool
    parameters: int
    places: dict[str, Places]
    losses: dict[str, Places]
    overlap_statement: str | None
    text: dict[str, Any]

    @property
    def name(self) -> str:
        """How the run is called in a legend."""
        return f"{self.folder} ({self.parameters:,} parameters)"

    @property
    def loss(self) -> Places:
        """Of the way in which it was trained."""
        return self.losses["on" if self.retrieval else "off"]

    def loss_at(self, unit: str, place: float) -> float:
        """Return the loss at a place, on the line between the measurements beside it."""
        there = ~np.isnan(self.loss)
        return float(np.interp(place, self.places[unit][there], self.loss[there]))


def read_training(folder: Path) -> TrainedRun:
    """Read a run.

    Raises:
        UsageError: no run, or no validation loss was measured while it was trained.
        DamagedDataError: run.json or report.json was changed.
    """
    run = RunFolder(Path(folder))
    if not run.description.exists():
        raise UsageError(f'"{folder}": not a run folder; give the folders of runs of `retroflow fit`.')
    identity, lines = run.identity(), read_metrics(run.path)
    measured = {line["step"]: line for line in lines if "validation/loss_off" in line or "validation/loss_on" in line}
    if not measured:
        raise UsageError(
            f'"{folder}": no validation loss was measured while it was trained; train it with trainer.validate_every=N.'
        )
    trained = [(line["step"], line["train/tokens"]) for line in lines if "train/tokens" in line]
    steps, seconds = np.array(list(measured), dtype=np.float64), [(0.0, 0.0)]
    for line in read_metrics(run.path, name="throughput.jsonl"):
        seconds.append((line["step"], seconds[-1][1] + line["seconds"]))
    return TrainedRun(
        folder=run.path,
        retrieval=bool(identity["training"]["retrieval"]),
        parameters=int(identity["training"]["num_parameters"]),
        places={
            "tokens": _interpolated(steps, [(0, 0), *trained]),
            "seconds": _interpolated(steps, seconds),
        },
        losses={
            mode: np.array([line.get(f"validation/loss_{mode}", np.nan) for line in measured.values()], np.float64)
            for mode in ("on", "off")
        },
        overlap_statement=run.stored_report().get("overlap_statement"),
        text={"chunks": identity["fingerprints"]["chunks"]}
        | {key: _value(identity["values"], key) for key in _SAME_TEXT},
    )


def training_curves(folders: Sequence[Path], output: Path | None = None) -> list[Curve]:
    """Write the losses of runs over tokens, and over seconds.

    Args:
        folders: of the runs.
        output: folder for the curves; None for one in the first run's.

    Raises:
        UsageError: one is no run, or their losses were measured on different text.
    """
    if not folders:
        raise UsageError("over='training': no runs given; give the folders of runs, with retrieval and without.")
    runs = [read_training(folder) for folder in folders]
    for run in runs[1:]:
        if different := [key for key in run.text if run.text[key] != runs[0].text[key]]:
            raise UsageError(
                f'"{run.folder}" and "{runs[0].folder}" have different {", ".join(different)}: their losses are of '
                "different text. Give runs on the same chunks with the same validation."
            )
    curves = [_curve(runs, unit, output or runs[0].folder / CURVES_FOLDER) for unit in ("tokens", "seconds")]
    for made in curves:
        made.write()
    return curves


def _curve(runs: Sequence[TrainedRun], unit: str, folder: Path) -> Curve:
    points = [
        {
            "x": float(place),
            "label": f"{place:,.0f}",
            "series": run.name,
            "on": _or_none(on),
            "off": _or_none(off),
        }
        for run in runs
        for place, on, off in zip(run.places[unit], run.losses["on"], run.losses["off"], strict=True)
    ]
    with_retrieval = [run for run in runs if run.retrieval]
    without = [run for run in runs if not run.retrieval]
    equal = [_at_equal(one, other, unit) for one, other in itertools.product(with_retrieval, without)]
    known = [f"{run.folder}: {run.overlap_statement}" for run in with_retrieval if run.overlap_statement]
    is_known = bool(known) and len(known) == len(with_retrieval)
    return Curve(
        over=f"training_{unit}",
        unit=unit,
        points=points,
        model={"runs": [str(run.folder) for run in runs]},
        text=runs[0].text,
        overlap_statement=" ".join(known) if is_known else None,
        folder=folder,
        notes=[_sentence(found, unit) for found in equal if is_known],
        more={"equal": equal if is_known else []},
    )


def _at_equal(one: TrainedRun, other: TrainedRun, unit: str) -> dict[str, Any]:
    place = float(min(one.places[unit][-1], other.places[unit][-1]))
    losses = [run.loss_at(unit, place) for run in (one, other)]
    share = abs(one.parameters / other.parameters - 1)
    return {
        "with_retrieval": str(one.folder),
        "without": str(other.folder),
        unit: place,
        "loss_with_retrieval": losses[0],
        "loss_without": losses[1],
        "gain": losses[1] - losses[0],
        "parameters": [one.parameters, other.parameters],
        "equal_parameters": share <= EQUAL_SHARE,
    }


def _sentence(found: dict[str, Any], unit: str) -> str:
    parameters = found["parameters"]
    beside = "as many" if found["equal_parameters"] else f"{parameters[0] / parameters[1]:.2f} times as many"
    return (
        f"After {found[unit]:,.0f} {unit} {found['with_retrieval']} is {found['gain']:.4f} nats per token below "
        f"{found['without']}, with {beside} parameters."
    )


def _interpolated(steps: Places, known: Sequence[tuple[float, float]]) -> Places:
    places, values = zip(*known, strict=True)
    return np.asarray(np.interp(steps, places, values), dtype=np.float64)


def _value(values: Any, key: str) -> Any:
    section, name = key.split(".")
    return values[section].get(name)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
