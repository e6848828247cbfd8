"""The result of a benchmark: as JSON, CSV and Markdown, and in a terminal."""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from retroflow.comparison.curve_file import Curve
from retroflow.planning.memory_estimate import size_text
from retroflow.store.disk import disk_size
from retroflow.store.sealed_json import write_json, write_text

DEFINITIONS = {
    "recall": "share of the k found that are as near as the k-th nearest by brute force; an equally near one counts",
    "queries_per_second": "of single queries, one after the other: 1 / mean seconds of the fastest round",
    "p50": "milliseconds of a single query in that round; p90 and p99 alike",
    "queries": "single queries that were timed",
    "batch_queries_per_second": "of all queries in one call, the fastest round",
    "memory": "bytes of resident memory of the process after single queries or after a batch, whichever is more, less "
    "before loading; mapped pages that were read count",
    "build_memory": "largest number of bytes of resident memory while building and saving, less before",
    "build_peak": "largest number of bytes of resident memory of the whole process then",
    "disk": "bytes of the index's files",
    "load": "load average of the machine's last minute, before and after",
}

_COLUMNS = ("retriever", "setting", "recall@k", "queries/s", "in a batch", "p50 ms", "p90 ms", "p99 ms")
_INDEX_COLUMNS = ("retriever", "index", "build s", "memory building", "memory", "disk", "load")


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes:
        values: JSON values, as in bench.json (docs/bench.md).
        folder: of its files.
        losses: of a model at each setting; None if there is no model.
    """

    values: Mapping[str, Any]
    folder: Path
    losses: Curve | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; docs/bench.md describes them."""
        losses = None if self.losses is None else self.losses.to_json()
        return {"bench_version": 1, **self.values, "losses": losses, "definitions": DEFINITIONS}

    def to_csv(self) -> str:
        """Return a line for each setting."""
        text = io.StringIO()
        lines = [
            {
                "retriever": index["retriever"],
                **{key: value for key, value in index.items() if isinstance(value, int | float)},
                "setting": _words(setting["search"]),
                **{key: value for key, value in setting.items() if isinstance(value, int | float)},
            }
            for index in self.values["retrievers"]
            for setting in index["settings"]
        ]
        writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def to_markdown(self) -> str:
        """Return a page: what was measured and where, the tables, the picture."""
        data, machine = self.values["data"], self.values["machine"]
        lines = [f"# Retrievers on {data['described'].partition(':')[0].partition(';')[0]}", ""]
        lines += [f"{self.values['date']}. {sentence}" for sentence in [f"`{self.values['command']}`"]]
        lines += [
            "",
            f"{data['described']}. k = {self.values['k']}. True neighbours by brute force.",
            f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, {machine['python']}. "
            + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
            + ".",
            "",
            f"**Load of the machine** (average number of running processes): {self._loads()}. Where it is above the "
            "number of cores, other work ran beside this: rates are lower bounds and seconds upper bounds.",
            "",
            "## Indexes",
            "",
        ]
        lines += _markdown(_INDEX_COLUMNS, self._index_rows())
        lines += ["", "## Searches", "", *_markdown(_COLUMNS, self._rows()), "", "![Recall and speed](bench.svg)", ""]
        if self.losses is not None:
            lines += ["## Losses", "", *self._loss_lines(self.losses), ""]
        lines += [f"- {name}: {meaning}." for name, meaning in DEFINITIONS.items()]
        return "\n".join(lines) + "\n"

    def write(self) -> None:
        """Write bench.json, bench.csv and bench.md.

        Raises:
            RetroflowError: a file cannot be written.
        """
        write_json(self.folder / "bench.json", self.to_json())
        write_text(self.folder / "bench.csv", self.to_csv())
        write_text(self.folder / "bench.md", self.to_markdown())

    def render(self) -> Group:
        """Return tables for rich."""
        data = self.values["data"]
        indexes = _table(f"{data['described']}; k = {self.values['k']}", _INDEX_COLUMNS, self._index_rows())
        searches = _table("", _COLUMNS, self._rows())
        losses = "" if self.losses is None else self.losses.render()
        return Group(indexes, searches, Text(f"Load of the machine: {self._loads()}."), losses)

    def _loss_lines(self, losses: Curve) -> Iterator[str]:
        """Yield a table of losses and recalls in Markdown, and its limits."""

        def rows() -> Iterator[tuple[str, ...]]:
            for point in losses.shown_points:
                gain = point.get("gain")
                interval = point.get("gain_interval")
                spread = "" if interval is None else f" ({interval[0]:.4f} to {interval[1]:.4f})"
                shown = "" if gain is None else f"{gain:.4f}{spread}"
                yield str(point["label"]), f"{point['recall']:.4f}", f"{point['on']:.4f}", shown

        yield from _markdown(("retriever", "recall", losses.measure, "gain over off (95 %)"), rows())
        yield from ("", losses.note, "", "![Loss and recall](loss.svg)")

    def _index_rows(self) -> Iterator[tuple[str, ...]]:
        for index in self.values["retrievers"]:
            sizes = [index["build_memory"], index["memory"]]
            shown = ["?" if size is None else size_text(max(0, size)) for size in sizes]
            build = f"{index['build_seconds']:,.1f}"
            yield index["retriever"], index["kind"], build, *shown, disk_size(index["disk"]), _range(index["load"])

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for index in self.values["retrievers"]:
            for setting in index["settings"]:
                rates = (setting["queries_per_second"], setting["batch_queries_per_second"])
                times = (setting["p50"], setting["p90"], setting["p99"])
                yield (
                    index["retriever"],
                    _words(setting["search"]),
                    f"{setting['recall']:.4f}",
                    *(f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}" for rate in rates),
                    *(f"{milliseconds:.3g}" for milliseconds in times),
                )

    def _loads(self) -> str:
        loads = [load for index in self.values["retrievers"] for load in index["load"] if load is not None]
        return _range(loads) if loads else "not known"


def _range(numbers: list[float | None]) -> str:
    known = [number for number in numbers if number is not None]
    return f"{min(known):.1f} to {max(known):.1f}" if known else "?"


def _words(search: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in search.items())


def _table(title: str, columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Table:
    table = Table(title=title or None, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("retriever", "index", "setting") else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _markdown(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> list[str]:
    marks = ["---" if column in ("retriever", "index", "setting") else "--:" for column in columns]
    return [f"| {' | '.join(row)} |" for row in (columns, marks, *rows)]
