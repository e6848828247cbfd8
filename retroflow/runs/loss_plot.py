"""Plot the losses of runs over their steps; the only file that imports matplotlib."""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retroflow.errors import MissingExtraError, RetroflowError, UsageError
from retroflow.runs.metrics import read_metrics

CURVES = {
    "train/loss": ("training", "-"),
    "validation/loss_on": ("validation, retrieval on", "--"),
    "validation/loss_off": ("validation, retrieval off", ":"),
}
"""Plotted columns of metrics.jsonl: name in the legend, kind of line."""

ENDINGS = (".pdf", ".png", ".svg")


def plot_losses(run_folders: Sequence[Path], output: Path) -> None:
    """Plot every loss in the runs' metrics.jsonl.

    Args:
        run_folders: one colour each.
        output: the picture; its ending decides the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: a folder without metrics, or another ending.
        RetroflowError: the picture cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError('runs plot: needs matplotlib. Install it with: pip install "retroflow[plot]"')
    if output.suffix.lower() not in ENDINGS:
        raise UsageError(f"output='{output}': the name must end in .png, .svg or .pdf.")
    curves = {folder: _curves(folder) for folder in run_folders}
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for number, (folder, of_run) in enumerate(curves.items()):
        for name, (steps, losses) in of_run.items():
            meaning, style = CURVES[name]
            label = meaning if len(curves) == 1 else f"{folder}: {meaning}"
            few = len(steps) < 30
            axes.plot(steps, losses, style, color=f"C{number}", label=label, marker="." if few else None)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(", ".join(str(folder) for folder in curves) if len(curves) == 1 else f"{len(curves)} runs")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(output, dpi=150)
    except OSError as error:
        raise RetroflowError(f"{output}: cannot be written ({error.strerror}); choose another file.") from error


def _curves(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and finite losses of every curve; damaged lines are left out."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for values in read_metrics(folder):
        for name in CURVES:
            if _is_finite(values.get(name)):
                steps, losses = found.setdefault(name, ([], []))
                steps.append(values["step"])
                losses.append(values[name])
    if not found:
        raise UsageError(
            f'"{folder}": has no metrics.jsonl with a loss; give the folder of a run that has trained a while.'
        )
    return found


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
