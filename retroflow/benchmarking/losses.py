"""The loss of a model against the recall of what it reads: the points of `retroflow curve --over retriever`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retroflow.benchmarking.entries import Entry
from retroflow.comparison.curve import RANDOM
from retroflow.comparison.curve import curve as measure_curve
from retroflow.comparison.curve_file import Curve
from retroflow.comparison.model_plan import plan_for
from retroflow.comparison.subject import Plan

REFERENCE = "exact"


@dataclass(frozen=True)
class Judge:
    """A model, and what it reads.

    Attributes:
        model: a run, an exported folder, or with a database and a corpus a pretrained base.
        database: as in `compare`.
        corpus: as in `compare`.
        sequences: as in `compare`.
    """

    model: str
    database: str | None = None
    corpus: str | None = None
    sequences: str = "100"

    def check(self) -> None:
        """Refuse what `losses` would refuse, before anything is measured.

        Raises:
            RetroflowError: as `retroflow curve`.
        """
        self._plan()

    def losses(self, entries: Sequence[Entry], folder: Path) -> Curve:
        """Measure the loss at each setting of the retrievers, with exact search and at random; writes retriever.json.

        Raises:
            RetroflowError: as `retroflow curve`.
        """
        words = [word for entry in entries for word in words_of(entry)]
        return measure_curve(self._plan(), "retriever", [*dict.fromkeys([REFERENCE, *words, RANDOM])], output=folder)

    def _plan(self) -> Plan:
        return plan_for(self.model, [], database=self.database, corpus=self.corpus, sequences=self.sequences)


def words_of(entry: Entry) -> list[str]:
    """Return a word for each setting, as `retroflow curve --over retriever --values` reads them."""
    words = []
    for search in entry.settings:
        varied = [(key, value) for key, value in search.items() if f"search.{key}=" not in entry.label]
        words.append(entry.label + "".join(f":search.{key}={value}" for key, value in varied))
    return words
