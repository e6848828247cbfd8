"""How well a model predicts given passages with each of several databases: what a change of the database is worth.

Losses are nats per predicted token of the passages, not of their contexts. Intervals of 95 % are paired: each resample
of the documents is the same for all databases (retroflow/evaluation/intervals.py).

Shapes: P passages, p of them in a group, D documents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text

from retroflow.evaluation.intervals import by_document, interval, resampled_losses
from retroflow.evaluation.opponents import FEW_DOCUMENTS
from retroflow.protocols import Int64Array

ALL = "all"

DEFINITIONS = {
    "loss": "nats per predicted token of the texts, without their contexts",
    "minus_off": "difference to retrieval off",
    "minus_first": "difference to the first database",
    "prefers_text": "share of passages whose text has fewer nats per byte than old_text",
    "interval": "95 % of 2,000 bootstrap resamples of documents, paired; null for a single document",
}


@dataclass(frozen=True)
class PassageReport:
    """What was measured.

    Attributes:
        documents: int64 [P], the document of each passage.
        groups: name -> int64 [p], passages of the group, all of them first.
        nats: name of the text, "text" or "old_text" -> "off" or name of the database -> float64 [P].
        tokens: name of the text -> int64 [P], predicted tokens; 0 where a passage has no such text.
        bytes: name of the text -> int64 [P].
        measured: how, and what.
        seed: of the bootstrap.
    """

    documents: Int64Array
    groups: dict[str, Int64Array]
    nats: Mapping[str, Mapping[str, NDArray[np.float64]]]
    tokens: Mapping[str, Int64Array]
    bytes: Mapping[str, Int64Array]
    measured: dict[str, Any]
    seed: int = 0

    @property
    def databases(self) -> list[str]:
        """Names of the databases, in order."""
        return [way for way in self.nats["text"] if way != "off"]

    def to_json(self) -> dict[str, Any]:
        """Return everything but the numbers of single passages, as JSON values."""
        groups = {name: self._group(places) for name, places in self.groups.items()}
        return {"report_version": 1, "definitions": DEFINITIONS, "measured": self.measured, "groups": groups}

    def _group(self, places: Int64Array) -> dict[str, Any]:
        documents = self.documents[places]
        values: dict[str, Any] = {"passages": len(places), "documents": len(np.unique(documents))}
        for name in self.nats:
            there = places[self.tokens[name][places] > 0]
            if len(there):
                values[name] = self._text(name, there)
        if "old_text" in values:
            values["prefers_text"] = self._preference(places[self.tokens["old_text"][places] > 0])
        return values

    def _text(self, name: str, places: Int64Array) -> dict[str, Any]:
        nats = {way: of_way[places] for way, of_way in self.nats[name].items()}
        return {
            "predicted_tokens": int(self.tokens[name][places].sum()),
            "bytes": int(self.bytes[name][places].sum()),
            "ways": self._compared(nats, self.tokens[name][places], self.documents[places], "loss"),
        }

    def _preference(self, places: Int64Array) -> dict[str, Any]:
        of_bytes = {
            name: {way: nats[places] / self.bytes[name][places] for way, nats in of_text.items()}
            for name, of_text in self.nats.items()
        }
        prefers = {way: (of_bytes["text"][way] < of_bytes["old_text"][way]).astype(float) for way in of_bytes["text"]}
        return self._compared(prefers, np.ones(len(places), dtype=np.int64), self.documents[places], "share")

    def _compared(
        self, sums: Mapping[str, NDArray[np.float64]], weights: Int64Array, documents: Int64Array, name: str
    ) -> dict[str, Any]:
        """Return each way's mean, and its differences to off and to the first database, with intervals."""
        means = {way: float(of_way.sum() / weights.sum()) for way, of_way in sums.items()}
        drawn = resampled_losses(
            {way: by_document(of_way, documents) for way, of_way in sums.items()},
            by_document(weights, documents),
            seed=self.seed,
        )
        values: dict[str, Any] = {}
        for way, mean in means.items():
            values[way] = {name: mean}
            for against, other in (("off", "off"), ("first", self.databases[0])):
                if way not in ("off", other):
                    bounds = list(interval(drawn[way] - drawn[other])) if len(np.unique(documents)) > 1 else None
                    values[way][f"minus_{against}"] = {"value": mean - means[other], "interval": bounds}
        return values

    def findings(self) -> list[str]:
        """Return in words what each other database changes, by group."""
        values, sentences = self.to_json()["groups"], []
        first = self.databases[0]
        for way in self.databases[1:]:
            for name, group in values.items():
                found = group["text"]["ways"][way]["minus_first"]
                lower = "lower" if found["value"] < 0 else "higher"
                bounds = found["interval"]
                clear = bounds is not None and (bounds[0] > 0 or bounds[1] < 0)
                stated = f"95% interval {_between(bounds)}" if bounds else "no 95% interval"
                sentences.append(
                    f"{name}: with {way} the loss of the texts is {abs(found['value']):.3f} nats per token {lower} "
                    f"than with {first} ({stated} of the difference)" + ("." if clear else ", which may be chance.")
                )
        sentences.append(
            "What the passages share with the databases was not measured: a lower loss can be copied text. `retroflow "
            "compare` measures it for a whole text."
        )
        if values[ALL]["documents"] < FEW_DOCUMENTS:
            sentences.append(f"These are few documents ({values[ALL]['documents']}), and intervals too narrow.")
        return sentences

    def render(self) -> Group:
        """Return the report for a terminal, for rich."""
        values = self.to_json()["groups"]
        tables = [_table(name, group, text) for name, group in values.items() for text in self.nats if text in group]
        return Group(*tables, *map(Text, self.findings()))


def groups_of(groups: Sequence[Sequence[str]]) -> dict[str, Int64Array]:
    """Return the passages int64 [p] of each group, all of them first, from the groups of each passage."""
    names = dict.fromkeys(name for of_passage in groups for name in of_passage)
    members = {name: [place for place, own in enumerate(groups) if name in own] for name in names if name != ALL}
    return {name: np.array(places, dtype=np.int64) for name, places in {ALL: range(len(groups)), **members}.items()}


def _table(name: str, group: Mapping[str, Any], text: str) -> Table:
    size = f"{group['passages']:,} passages of {group['documents']:,} documents"
    title = f"{name}, {text}: {size}, {group[text]['predicted_tokens']:,} tokens"
    table = Table(title=title, title_justify="left")
    table.add_column("database")
    prefers = group.get("prefers_text") if text == "text" else None
    headings = ["nats/token", "minus off (95%)", "minus the first database (95%)"]
    for heading in headings + (["prefers text to old_text"] if prefers else []):
        table.add_column(heading, justify="right")
    for way, values in group[text]["ways"].items():
        found = [values.get(f"minus_{against}") for against in ("off", "first")]
        cells = [f"{one['value']:.3f} ({_between(one['interval'])})" if one else "" for one in found]
        table.add_row(way, f"{values['loss']:.4f}", *cells, *([f"{prefers[way]['share']:.1%}"] if prefers else []))
    return table


def _between(bounds: Sequence[float] | None) -> str:
    return "-" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"
