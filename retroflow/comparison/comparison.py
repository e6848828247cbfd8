"""A finished comparison: its rows, remarks against wrong conclusions, and how all of it is printed and stored."""

import csv
import io
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from retroflow.comparison.leakage_facts import LeakageFacts
from retroflow.comparison.rows import SHARE_READ, TOPICS
from retroflow.comparison.table import COLUMNS, Measurements, Row
from retroflow.evaluation.attribution import SAME, WRONG, no_better, without_effect
from retroflow.evaluation.leakage import OverlapBucket, by_overlap, overlap_statement
from retroflow.evaluation.opponents import FEW_DOCUMENTS
from retroflow.evaluation.perplexity import Measure
from retroflow.protocols import ReportTable

OVERLAP = (
    "longest run of tokens that a chunk shares with the text that was retrieved for it (with frequent lookups: that "
    "its tokens read; of a model that reads nothing: with any text of the database) / chunk length; below 0.125, fewer "
    "than 8 of 64 tokens, is no local leakage (Borgeaud et al. 2022, 4.4)"
)

_NOTHING_READ = {
    "shuffled": "there is no other chunk, or with frequent lookups no other sequence, to take neighbours from",
    "topic_matched": "there is no other document to take neighbours from",
}

_COLUMNS = [each.name for each in fields(Row) if each.name != "facts"]


@dataclass(frozen=True)
class Comparison:
    """What was compared, and what was found.

    Attributes:
        measurements: of the rows, token by token.
        stated: "model", "database" and "probe", JSON values.
        left_out: rows that the model cannot have, and why.
        folder: where it is stored.
    """

    measurements: Measurements
    stated: dict[str, Any]
    left_out: dict[str, str]
    folder: Path

    @cached_property
    def rows(self) -> list[Row]:
        """The table."""
        return self.measurements.table()

    @property
    def judged(self) -> str | None:
        """The row whose gain is looked into: on, or else the first; None if there is no gain."""
        names = self.measurements.rows
        return next((name for name in ("on", *names) if name in names and name != "off" and "off" in names), None)

    @cached_property
    def overlap(self) -> list[OverlapBucket]:
        """Losses by overlap without retrieval and of the row that is judged: on, or else the first; empty without.

        Overlap is with what was retrieved; of a model that reads nothing, with any text of the database.
        """
        found, judged = self.measurements, self.judged
        if judged is None:
            return []
        places = np.intersect1d(found.places(judged), found.places("off"))
        measures = []
        for name in (judged, "off"):
            nats, tokens = found.by_chunk(name)
            nats, tokens = nats[places].ravel(), tokens[places].ravel()
            measures.append(Measure(float(nats.sum()), int(tokens.sum()), 0, 0.0, nats, tokens))
        overlaps = found.text.overlaps
        if not found.text.is_retrieved and self.leakage is not None:
            overlaps = self.leakage.overlaps["database"]
        return by_overlap(overlaps[places].ravel(), *measures)

    @property
    def overlap_statement(self) -> str | None:
        """How much of the gain overlap can explain; None if there is no gain."""
        others = "what was retrieved" if self.measurements.text.is_retrieved else "any text of the database"
        return overlap_statement(self.overlap, None if self.leakage is None else self.leakage.statement, others=others)

    @cached_property
    def leakage(self) -> LeakageFacts | None:
        """What of the text stands in the database and the training text; None if that was not looked for."""
        return LeakageFacts.read(self.folder)

    @property
    def warnings(self) -> list[str]:
        """Return what must not be overlooked."""
        rows = self.measurements.rows
        if "on" not in rows:
            return []
        sentences: list[str | None] = []
        if self._share_read("on") != 0:  # or a remark says so
            same = [name for name in rows if name != "on" and self._same(name, "on")]
            sentences.append(without_effect(same, self.stated["probe"]["effect"]))
        for name in WRONG:
            if name in rows and (self._share_read(name) != 0 or self._share_read("on") == 0):
                sentences.append(no_better(name, *self.measurements.difference("on", name)))
        if "random" not in rows:
            sentences.append(
                "Not checked: whether found neighbours are better than random ones. Measure the row random, too."
            )
        return [sentence for sentence in sentences if sentence is not None]

    def _share_read(self, name: str) -> float | None:
        """Return the share of a row's lookups that had text to read."""
        share: float | None = self.measurements.rows[name].facts.get(SHARE_READ)
        return share

    @property
    def findings(self) -> list[str]:
        """Return all sentences: warnings first, then the overlap statement, then the limits of the numbers."""
        overlap = self.overlap_statement
        return [*self.warnings, *([] if overlap is None else [overlap]), *self.remarks]

    @property
    def remarks(self) -> list[str]:
        """Return the limits of the numbers."""
        found, sentences = self.measurements, []
        documents = len(np.unique(found.text.documents[found.scored]))
        if documents < FEW_DOCUMENTS:
            narrow = "so there are no intervals" if documents < 2 else "and intervals are too narrow"
            sentences.append(f"Few documents ({documents}), {narrow}: compare more sequences, or a longer text.")
        compared = len(found.text.sequences)
        if compared < found.text.of:
            sentences.append(f"A sample was compared: {compared:,} of {found.text.of:,} sequences, evenly spaced.")
        for row in self.rows:
            if row.sequences < compared:
                sentences.append(
                    f"{row.name} was measured on {row.sequences:,} of these {compared:,} sequences; its gain is "
                    "against off on the same ones, and its nats are not comparable with other rows."
                )
        sentences += self._of_reading()
        sentences += [self._of_other(row) for row in self.rows if "training" in row.facts]
        sentences += [f"{name} is left out: {why}." for name, why in self.left_out.items()]
        return sentences

    def _of_reading(self) -> list[str]:
        """State which rows had less to read than on, or nothing."""
        shares = {row.name: row.facts[SHARE_READ] for row in self.rows if SHARE_READ in row.facts}
        sentences = []
        for name, share in shares.items():
            if share == 0:
                why = _NOTHING_READ.get(name, "nothing was found outside the sequences' own documents")
                sentences.append(f"{name} read nothing, so its numbers are those of off: {why}.")
            elif share < 0.9 * shares.get("on", 0.0):
                sentences.append(
                    f"{name} had text to read at {share:.1%} of its lookups only, on at {shares['on']:.1%}."
                )
        for row in self.rows:
            if row.facts.get(TOPICS) == 1 and shares.get(row.name):
                sentences.append(
                    f"{row.name}: there are too few documents for topics, so it reads any other document's."
                )
        return sentences

    def _of_other(self, row: Row) -> str:
        """State what another run was trained on, and how far it is from this one."""
        training, own = row.facts["training"], self.stated["model"].get("training")
        trained = f"{row.name} ({row.meaning} on {training['tokens']:,} tokens for {training['seconds']:,.0f} s)"
        judged = self.judged
        if judged is None or own is None:
            return f"{trained} has {row.nats:.4f} nats per token."
        difference, bounds = self.measurements.difference(judged, row.name)
        stated = "no interval" if bounds is None else f"95% interval {bounds[0]:.4f} to {bounds[1]:.4f}"
        return (
            f"{judged} is {difference:.4f} nats per token below {trained}, {stated}; this run was trained on "
            f"{own['tokens']:,} tokens for {own['seconds']:,.0f} s."
        )

    def _same(self, one: str, other: str) -> bool:
        found = self.measurements
        places = np.intersect1d(found.places(one), found.places(other))
        scored = found.scored[places]
        difference = np.abs(found.nats(one)[places] - found.nats(other)[places])[scored]
        return len(difference) > 0 and float(difference.max()) <= SAME

    def to_table(self) -> ReportTable:
        """Return the table with all its columns; an interval takes two columns."""
        names = [name for name in _COLUMNS if not name.endswith("_interval")]
        bounds = [name for name in _COLUMNS if name.endswith("_interval")]
        lines = []
        for row in map(asdict, self.rows):
            ends = [end for name in bounds for end in row[name] or (None, None)]
            lines.append([*(row[name] for name in names), *ends])
        columns = [*names, *(f"{name}_{end}" for name in bounds for end in ("low", "high"))]
        return ReportTable("comparison", columns, lines)

    def to_csv(self) -> str:
        """Return `to_table` as CSV."""
        stream, table = io.StringIO(), self.to_table()
        csv.writer(stream, lineterminator="\n").writerows([table.columns, *table.rows])
        return stream.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; docs/compare.md describes them."""
        found, judged = self.measurements, self.judged
        scored = found.scored
        return {
            "compare_version": 1,
            "folder": str(self.folder),
            **self.stated,
            "text": {
                "sequences": len(found.text.sequences),
                "of": found.text.of,
                "documents": len(np.unique(found.text.documents[scored])),
                "predicted_tokens": int(scored.sum()),
                "bytes": int(found.text.bytes.sum()),
                "words": None if (found.text.words < 0).any() else int(found.text.words.sum()),
            },
            "definitions": COLUMNS | {"overlap": OVERLAP},
            "overlap": {
                "statement": self.overlap_statement,
                "buckets": [asdict(bucket) for bucket in self.overlap],
                **({} if self.leakage is None or judged is None else self.leakage.to_json(found, judged)),
            },
            "rows": [asdict(row) for row in self.rows],
            "warnings": self.warnings,
            "findings": self.findings,
        }

    def render(self) -> Group:
        """Return warnings, table and remarks, for rich."""
        warnings = [Text(f"WARNING: {sentence}", style="bold red") for sentence in self.warnings]
        others = [sentence for sentence in self.findings if sentence not in self.warnings]
        return Group(*warnings, self._table(), Text(""), *map(Text, others))

    def _table(self) -> Table:
        text = self.measurements.text
        tokens, sequences = max(row.tokens for row in self.rows), len(text.sequences)
        title = f"{tokens:,} tokens of {sequences:,} sequences, each token once"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
        table.add_column("row", overflow="fold")
        for heading in _HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(row.name if row.facts.get(SHARE_READ) != 0 else f"{row.name} (read nothing)", *_cells(row))
        return table


_HEADINGS = ("nats", "bits/byte", "word ppl", "gain", "95%", "recovered", "ms/token", "passes")
"""Of the columns that the terminal shows; "passes" is computation_per_token."""


def _cells(row: Row) -> list[str]:
    bounds = row.gain_interval
    return [
        f"{row.nats:.4f}",
        f"{row.bits_per_byte:.4f}",
        _short(row.word_perplexity),
        "" if row.gain is None else f"{row.gain:.3f}",
        "" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}",
        "" if row.recovered is None else f"{row.recovered:.0%}",
        _short(1000 * row.seconds_per_token),
        f"{row.computation_per_token:.1f}",
    ]


def _short(value: float | None) -> str:
    """Format a number of any size with at most seven characters."""
    if value is None:
        return ""
    return f"{value:.3g}" if value < 100 or value >= 1e6 else f"{value:,.0f}"
