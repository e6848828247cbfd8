"""Plot the losses of runs over their steps."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retroflow.errors import UsageError
from retroflow.pictures.plots import Line, Panel, check_plot, draw
from retroflow.runs.metrics import read_metrics

CURVES = {
    "train/loss": ("training", "-"),
    "validation/loss_on": ("validation, retrieval on", "--"),
    "validation/loss_off": ("validation, retrieval off", ":"),
}
"""Plotted columns of metrics.jsonl: name in the legend, kind of line."""


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
    check_plot(output)
    lines = []
    for number, folder in enumerate(run_folders):
        for name, (steps, losses) in _curves(folder).items():
            meaning, style = CURVES[name]
            label = meaning if len(run_folders) == 1 else f"{folder}: {meaning}"
            marker = "." if len(steps) < 30 else ""
            lines.append(Line(label, steps, losses, colour=number, style=style, marker=marker))
    title = str(run_folders[0]) if len(run_folders) == 1 else f"{len(run_folders)} runs"
    draw([Panel(lines, "loss (nats per token)")], output, title=title, x_label="optimizer step")


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
