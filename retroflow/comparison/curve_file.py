"""A curve: losses at points along one axis, as JSON, as CSV and in a terminal. Pictures are drawn from the JSON."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from retroflow.errors import RetroflowError
from retroflow.store.sealed_json import write_json, write_text

CURVES_FOLDER = "curves"

DEFINITIONS = {
    "x": "place on the axis, in its unit",
    "on": "nats per predicted token with retrieval (over alpha: bits per byte)",
    "off": "the same without retrieval, of the same weights on the same tokens; of training, of the run's own",
    "gain": "off - on",
    "on_interval": "95 % of 2,000 bootstrap resamples of documents; gain_interval is paired",
    "bits_per_byte": "of on: nats / (ln 2 * UTF-8 bytes of the text)",
    "recall": "share of the k nearest chunks by exact search of vectors that the retriever found; an equally near one "
    "counts",
    "seconds_per_token": "duration of measuring on / predicted tokens, without the search",
}

_SHOWN = ("on", "off", "gain", "recall", "bits_per_byte", "seconds_per_token")


@dataclass(frozen=True)
class Curve:
    """Losses along one axis.

    Attributes:
        over: "k", "size", "retriever", "step", "alpha", "training_tokens" or "training_seconds".
        unit: of x.
        points: ascending, or in the order in which retrievers were named; keys as in `DEFINITIONS`, and "label".
        model: what was measured, JSON values.
        text: what it was measured on, JSON values.
        overlap_statement: how much of a gain overlap explains; None if that is not known, and then no gain is shown.
        notes: what else limits the numbers.
        folder: where its files are.
        measure: unit of the losses.
        more: JSON values of this kind of curve alone.
        date: when it was measured.
    """

    over: str
    unit: str
    points: Sequence[Mapping[str, Any]]
    model: Mapping[str, Any]
    text: Mapping[str, Any]
    overlap_statement: str | None
    folder: Path
    notes: Sequence[str] = ()
    measure: str = "nats per token"
    more: Mapping[str, Any] = field(default_factory=dict)
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))

    @property
    def note(self) -> str:
        """What stands below a picture."""
        stated = self.overlap_statement or "The overlap with retrieved text is not known, so no gain is shown."
        return " ".join([f"{self.date}.", *self.notes, stated])

    @property
    def shown_points(self) -> list[dict[str, Any]]:
        """The points, without gains if the overlap is not known."""
        hidden = () if self.overlap_statement else ("gain", "gain_interval")
        return [{key: value for key, value in point.items() if key not in hidden} for point in self.points]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; docs/curves.md describes them."""
        return {
            "curve_version": 1,
            "over": self.over,
            "unit": self.unit,
            "measure": self.measure,
            "points": self.shown_points,
            "model": dict(self.model),
            "text": dict(self.text),
            "definitions": DEFINITIONS,
            "overlap_statement": self.overlap_statement,
            "note": self.note,
            **self.more,
            "date": self.date,
        }

    def to_csv(self) -> str:
        """Return a table with a line for each point; the ends of an interval have columns of their own."""
        lines = [_flat(point) for point in self.shown_points]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    @property
    def file(self) -> Path:
        """Its JSON file; the others have the same name and another ending."""
        return self.folder / f"{self.over}.json"

    def write(self) -> None:
        """Write NAME.json and NAME.csv, each whole or not at all.

        Raises:
            RetroflowError: a file cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RetroflowError(f"output='{self.folder}': cannot be made ({error.strerror}).") from error
        write_text(self.file.with_suffix(".csv"), self.to_csv())
        write_json(self.file, self.to_json())

    def render(self) -> Group:
        """Return a table and its limits, for rich."""
        points = self.shown_points
        table = Table(title=f"{self.measure} over {self.over} ({self.unit})", title_justify="left")
        names = [name for name in ("series", "label") if any(name in point for point in points)]
        columns = [name for name in _SHOWN if any(point.get(name) is not None for point in points)]
        for name in (*names, *columns):
            table.add_column(name, justify="left" if name in names else "right")
        for point in points:
            table.add_row(*(str(point.get(name, "")) for name in names), *(_cell(point, name) for name in columns))
        return Group(table, Text(self.note))


def _flat(point: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in point.items():
        if key.endswith("_interval"):
            flat[f"{key}_low"], flat[f"{key}_high"] = value or (None, None)
        else:
            flat[key] = value
    return flat


def _cell(point: Mapping[str, Any], name: str) -> str:
    value, bounds = point.get(name), point.get(f"{name}_interval")
    if value is None:
        return ""
    text = f"{value:.4g}" if name == "seconds_per_token" else f"{value:.4f}"
    return text if not bounds else f"{text} ({bounds[0]:.3f} to {bounds[1]:.3f})"
