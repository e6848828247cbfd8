"""What was measured of a run, from its files, in the form that the page shows: tables, curves, findings, facts."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retroflow.console import say
from retroflow.errors import DamagedDataError
from retroflow.evaluation.report import MODES, OPPONENTS, SMALL_GAIN
from retroflow.evaluation.stored_report import StoredReport
from retroflow.pictures.loss_plot import CURVES
from retroflow.pictures.plots import TITLES
from retroflow.runs.description import RunDescription
from retroflow.runs.metrics import read_metrics

COMPARISONS, CURVE_FILES = "comparisons/*/comparison.json", "curves/**/*.json"
"""Where `retroflow compare` and `retroflow curve` write, in the run folder."""

_MOST_POINTS = 300
"""Points of a training curve that are drawn."""


def newest_comparison(run_folder: Path) -> Path | None:
    """Return the run's comparison.json that was written last; None if there is none."""
    return max(run_folder.glob(COMPARISONS), key=lambda path: path.stat().st_mtime, default=None)


def read_values(path: Path, version: str) -> dict[str, Any]:
    """Read what `compare` or `curve` wrote.

    Args:
        path: the file.
        version: the key that says what the file is.

    Raises:
        DamagedDataError: it is something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values[version]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedDataError(
            f'"{path}": cannot be read ({type(error).__name__}: {error}). Delete it, and measure it again.'
        ) from error
    return dict(values)


def tables_of(report: StoredReport, comparison: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the tables of losses, the comparison's first."""
    found = []
    if comparison is not None:
        text, model = comparison["text"], comparison["model"]
        overrides = "".join(f", {key}={value}" for key, value in model.get("overrides", {}).items())
        measured = f"{model.get('checkpoint')}{overrides}"
        note = f"{text['predicted_tokens']:,} tokens of {text['sequences']:,} of {text['of']:,} sequences, "
        found.append(
            {
                "name": "comparison",
                "title": "Compared on the same text",
                "note": f"{note}{text['documents']:,} documents; every token once; {measured}",
                "rows": [row | {"meaning": _meaning_of(row)} for row in comparison["rows"]],
            }
        )
    values = report.values
    sample = values["sample"]
    size = f", a sample of {sample['sequences']:,} of {sample['of']:,} sequences" if sample else ""
    note = f"{values['predicted_tokens']:,} tokens, {values['bytes']:,} bytes{size}"
    rows = [
        _row(mode, meaning, values, values["intervals"])
        for mode, meaning in MODES.items()
        if mode in values["validation"]
    ]
    found.append({"name": "validation", "title": "Validation", "note": note, "rows": rows})
    if "opponents" in values:
        opponents = values["opponents"]
        note = (
            f"{opponents['predicted_tokens']:,} tokens of {opponents['sequences']:,} of {opponents['of']:,} sequences "
            "without the first chunk of each"
        )
        rows = [
            _row(mode, meaning, opponents, opponents["intervals"])
            for mode, meaning in OPPONENTS.items()
            if mode in opponents["validation"]
        ]
        found.append(
            {"name": "opponents", "title": "The same neighbours in the base's prompt", "note": note, "rows": rows}
        )
    return found


def _meaning_of(row: Mapping[str, Any]) -> str:
    """Return what a row of a comparison is, with where its neighbours come from."""
    meaning, neighbours = str(row["meaning"]), str(row["neighbours"])
    if neighbours == "none":
        return meaning
    return f"{meaning} {neighbours}" if meaning.endswith("reads") else f"{meaning}: {neighbours}"


def _row(mode: str, meaning: str, values: Mapping[str, Any], intervals: Mapping[str, Any]) -> dict[str, Any]:
    """One row, as a comparison has it: gains are nats per token below off."""
    measure = values["validation"][mode]
    bounds = intervals.get(f"{mode}_minus_off")
    return {
        "name": mode,
        "meaning": meaning,
        "nats": measure["loss"],
        "bits_per_byte": measure["bits_per_byte"],
        "gain": None if mode == "off" else values["validation"]["off"]["loss"] - measure["loss"],
        "gain_interval": bounds and [-bounds[1], -bounds[0]],
        "seconds_per_token": measure["seconds_per_token"],
    }


def verdict_of(
    table: Mapping[str, Any], stored: Mapping[str, Any], comparison: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return in a sentence what retrieval is worth, how sure that is, and how much of it is overlap.

    Args:
        table: the first of `tables_of`.
        stored: the report.
        comparison: the newest one, if there is one.

    Returns:
        `level` ("good", "warning" or "none"), `sentence`, `overlap` and `warnings`.
    """
    rows = {row["name"]: row for row in table["rows"] if row["nats"] is not None}
    overlap = stored.get("overlap_statement") if comparison is None else comparison["overlap"]["statement"]
    if "on" not in rows or "off" not in rows:
        sentence = "Measured without retrieval: nothing is said about what it is worth."
        return {"level": "none", "sentence": sentence, "warnings": [], "overlap": ""}
    if overlap is None:
        sentence = "The overlap with the retrieved text was not measured, so no gain is shown."
        return {"level": "warning", "sentence": sentence, "warnings": [], "overlap": ""}
    on, off = rows["on"]["nats"], rows["off"]["nats"]
    word, bounds = "lowers" if on < off else "raises", rows["on"].get("gain_interval")
    stated = f"; 95% interval of the gain {bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else ""
    sentence = (
        f"Retrieval {word} the loss by {abs(off - on):.3f} nats per token, from {off:.3f} to {on:.3f} "
        f"({(on - off) / off:+.1%}{stated})."
    )
    warnings = [*(stored if comparison is None else comparison)["warnings"], *_warnings(rows)]
    return {"level": "warning" if warnings else "good", "sentence": sentence, "warnings": warnings, "overlap": overlap}


def _warnings(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    on, off, bounds = rows["on"]["nats"], rows["off"]["nats"], rows["on"].get("gain_interval")
    warnings = []
    if on >= off * (1 + SMALL_GAIN):
        warnings.append("Retrieval hurts: the loss is higher than without it.")
    elif on > off * (1 - SMALL_GAIN):
        warnings.append(f"Retrieval makes little difference: less than {SMALL_GAIN:.0%} of the loss.")
    if bounds and bounds[0] <= 0 <= bounds[1]:
        warnings.append(f"The gain may be chance: its 95% interval, {bounds[0]:.3f} to {bounds[1]:.3f}, contains 0.")
    return warnings


def overlap_rows(overlap: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the report's `by_overlap` as rows of a breakdown."""
    whole = sum((bucket["loss_off"] - bucket["loss_on"]) * bucket["tokens"] for bucket in overlap)
    return [
        {
            "name": f"{bucket['at_least']:.1%} to {bucket['below']:.1%}",
            "tokens": bucket["tokens"],
            "on": bucket["loss_on"],
            "off": bucket["loss_off"],
            "gain": bucket["loss_off"] - bucket["loss_on"],
            "share_of_gain": (bucket["loss_off"] - bucket["loss_on"]) * bucket["tokens"] / whole if whole else None,
        }
        for bucket in overlap
    ]


def curves_of(run_folder: Path) -> list[dict[str, Any]]:
    """Return every curve that `retroflow curve` has written into the run folder, then that of the training."""
    training = training_curve(run_folder)
    return [*map(_curve, stored_curves(run_folder)), *([training] if training else [])]


def stored_curves(run_folder: Path) -> list[dict[str, Any]]:
    """Return the content of the files of `retroflow curve`; a damaged one is left out, which is said."""
    found = []
    for path in sorted(run_folder.glob(CURVE_FILES)):
        try:
            found.append(read_values(path, "curve_version"))
        except DamagedDataError as error:
            say(f"{error} It is left out.")
    return found


def _curve(curve: Mapping[str, Any]) -> dict[str, Any]:
    """Return a curve as the page draws it: panels of series, the losses above the gain."""
    over, points, measure = curve["over"], curve["points"], curve.get("measure", "nats per token")
    title, x_label, scale = TITLES.get(over, (f"Loss and {over}", over, "linear"))
    percent = 100 if "%" in x_label else 1
    losses, gains = [], []
    for name in dict.fromkeys(point.get("series", "") for point in points):
        own = [
            (str(point.get("label", point["x"])), point["x"] if scale == "names" else percent * point["x"], point)
            for point in points
            if point.get("series", "") == name
        ]
        losses += [_series(f"{name} with retrieval".strip(), own, "on"), _series(f"{name} without".strip(), own, "off")]
        gains.append(_series(f"{name} gain".strip(), own, "gain"))
    panels = [{"y": f"loss, {measure}", "series": [one for one in losses if one["points"]]}]
    if found := [one for one in gains if one["points"]]:
        panels.append({"y": f"gain, {measure}", "series": found})
    recalls = {
        str(point.get("label", point["x"])): point["recall"] for point in points if _is_finite(point.get("recall"))
    }
    return {
        "name": over,
        "title": title,
        "x": x_label,
        "scale": scale,
        "panels": panels,
        "recall": recalls,
        "note": curve.get("note", ""),
    }


def _series(name: str, points: Sequence[tuple[str, Any, Mapping[str, Any]]], key: str) -> dict[str, Any]:
    there = [
        {"x": x, "label": label, "y": point[key], "interval": point.get(f"{key}_interval")}
        for label, x, point in points
        if _is_finite(point.get(key))
    ]
    return {"name": name, "points": there}


def training_curve(run_folder: Path) -> dict[str, Any] | None:
    """Return the losses in metrics.jsonl as a curve; None if there are none."""
    series = []
    lines = read_metrics(run_folder)
    for name, (meaning, _) in CURVES.items():
        measured = [(line["step"], line[name]) for line in lines if _is_finite(line.get(name))]
        every = max(1, math.ceil(len(measured) / _MOST_POINTS))
        kept = measured[::every] + (measured[-1:] if (len(measured) - 1) % every else [])
        if kept:
            points = [{"x": step, "label": f"{step:,}", "y": loss, "interval": None} for step, loss in kept]
            series.append({"name": meaning, "points": points})
    if not series:
        return None
    return {
        "name": "training",
        "title": "Loss and optimizer steps",
        "x": "optimizer step",
        "scale": "linear",
        "panels": [{"y": "loss, nats per token", "series": series}],
        "recall": {},
        "note": "metrics.jsonl; the validation losses are of a few fixed sequences",
    }


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def facts_of(
    run: RunDescription, report: StoredReport, described: Mapping[str, Any], file: Path
) -> list[tuple[str, str]]:
    """Return how it was measured, as pairs of a label and a text.

    Args:
        run: the run.
        report: its report.
        described: the content of run.json.
        file: of the report.
    """
    values, training = report.values, report.values["training"]
    sample, lookups = values["sample"], values["lookups"]
    written = datetime.fromtimestamp(file.stat().st_mtime, tz=UTC)
    size = "the whole validation split"
    if sample:
        size = f"{sample['sequences']:,} of {sample['of']:,} validation sequences, evenly spaced"
    facts = {
        "run": str(run.folder),
        "measured": f"{written:%Y-%m-%d %H:%M} UTC (the date of report.json)",
        "text": f"{size}: {values['predicted_tokens']:,} predicted tokens, {values['bytes']:,} bytes",
        "checkpoint": f"{values['measured'].get('checkpoint')}, SHA-256 {values['measured'].get('checkpoint_sha256')}",
        "training": f"{training['steps']:,} of {training['max_steps']:,} steps, {training['tokens']:,} tokens, "
        f"{training['seconds']:,.0f} s",
        "parameters": f"{training['num_parameters']:,}, of which {training['num_trained_parameters']:,} were trained",
        "seed": str(training["seed"]),
        "device": f"{training['device']}, {training['precision']}",
        "versions": ", ".join(f"{name} {version}" for name, version in described.get("versions", {}).items()),
        "retriever": str(run.values["retriever"]["name"]),
        "neighbours": f"{run.values['neighbours']['k']}"
        + (f", looked up every {lookups['step']} tokens" if lookups else " of each chunk"),
    }
    return [(label, text) for label, text in facts.items() if text]
