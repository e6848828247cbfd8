"""Compare two runs: how their recipes differ, and their results."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroflow.runs.description import flat, read_run
from retroflow.runs.folder import RunFolder
from retroflow.runs.metrics import last_metrics

Pair = tuple[Any, Any]
"""The values of the first and the second run; None if there is none."""


@dataclass(frozen=True)
class Comparison:
    """The differences between two runs, and their results.

    Attributes:
        folders: of the runs.
        recipe: dotted key -> the two values, of keys that differ.
        artifacts: kind -> the two fingerprints, of kinds that differ.
        training: fact of the report -> both, of facts that differ.
        metrics: name -> both, of the last line of metrics.jsonl.
        validation: "loss on", "bits/byte off", "gain over shuffled" and the like -> both, of the report.
        notes: why the results cannot be compared, and how much of a gain overlap explains.
    """

    folders: tuple[Path, Path]
    recipe: dict[str, Pair]
    artifacts: dict[str, Pair]
    training: dict[str, Pair]
    metrics: dict[str, Pair]
    validation: dict[str, Pair]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        sections = ("recipe", "artifacts", "training", "metrics", "validation")
        pairs = {name: {key: list(pair) for key, pair in getattr(self, name).items()} for name in sections}
        return {"runs": list(map(str, self.folders)), **pairs, "notes": list(self.notes)}

    def lines(self) -> list[str]:
        """Return lines for a terminal: a table for each section with content."""
        sections = {
            "recipe (what differs)": self.recipe,
            "artifacts (what differs)": self.artifacts,
            "training (what differs)": self.training,
            "last metrics": self.metrics,
            "validation": self.validation,
        }
        shown = {title: [(key, *map(_written, pair)) for key, pair in rows.items()] for title, rows in sections.items()}
        every = [("", *map(str, self.folders)), *(row for rows in shown.values() for row in rows)]
        widths = [max(len(row[column]) for row in every) for column in range(2)]
        lines = [f"{'':<{widths[0] + 2}}  {self.folders[0]!s:<{widths[1]}}  {self.folders[1]}"]
        for title, rows in shown.items():
            lines.append(f"{title}:" if rows else f"{title}: nothing")
            lines += [f"  {key:<{widths[0]}}  {first:<{widths[1]}}  {second}" for key, first, second in rows]
        return [line.rstrip() for line in lines] + list(self.notes)


def compare(first: Path, second: Path) -> Comparison:
    """Compare two runs, finished or not.

    Raises:
        GenerationError: one is not a run folder.
        DamagedDataError: a run.json, recipe.yaml or report.json cannot be read, or was changed.
    """
    described = [read_run(folder) for folder in (first, second)]
    reports = [RunFolder(folder).stored_report() for folder in (first, second)]
    artifacts = _differing(*(run.fingerprints for run in described))
    training = _differing(*(flat(values.get("training", {})) for values in reports))
    metrics = _paired(*(last_metrics(folder) for folder in (first, second)))
    return Comparison(
        folders=(first, second),
        recipe=_differing(*(flat(run.values) for run in described)),
        artifacts=artifacts,
        training=training,
        metrics=metrics,
        validation=_paired(*map(_validation, reports)),
        notes=(*_notes(artifacts, reports), *_overlaps((first, second), reports)),
    )


def _validation(report: dict[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    modes = report.get("validation")
    for mode, measured in (modes if isinstance(modes, dict) else {}).items():
        if isinstance(measured, dict):
            rows |= {f"loss {mode}": measured.get("loss"), f"bits/byte {mode}": measured.get("bits_per_byte")}
    for baseline in ("off", "shuffled", "random"):
        if f"gain_over_{baseline}" in report and report.get("overlap_statement"):
            rows[f"gain over {baseline}"] = report[f"gain_over_{baseline}"]
    for name in ("recovered", "predicted_tokens", "bytes", "share_without_neighbours"):
        if name in report:
            rows[name] = report[name]
    return rows


def _notes(artifacts: dict[str, Pair], reports: list[dict[str, Any]]) -> list[str]:
    if not all(reports):
        return ["One of the two has no report yet, so nothing was measured over the whole validation split."]
    texts, tokens = ({report.get(name) for report in reports} for name in ("bytes", "predicted_tokens"))
    if len(texts) > 1:
        return ["The two were measured on different validation text: neither losses nor bits per byte can be compared."]
    if len(tokens) > 1:
        return ["The two have different tokenizers: compare bits per byte, not losses per token."]
    if "chunks" in artifacts:
        return ["The two were measured on different chunks: the validation text may differ."]
    return []


def _overlaps(folders: tuple[Path, Path], reports: list[dict[str, Any]]) -> list[str]:
    stated = zip(folders, (report.get("overlap_statement") for report in reports), strict=True)
    return [f"{folder}: {statement}" for folder, statement in stated if statement]


def _paired(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Pair]:
    return {key: (first.get(key), second.get(key)) for key in dict.fromkeys((*first, *second))}


def _differing(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Pair]:
    return {key: pair for key, pair in _paired(first, second).items() if pair[0] != pair[1]}


def _written(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
