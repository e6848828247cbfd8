"""The proof at the end of a run: a table for people, JSON for everything else, and what it does not show."""

from dataclasses import asdict, dataclass, field

from rich.console import Group
from rich.table import Table
from rich.text import Text

from retroflow.evaluation.leakage import OverlapBucket
from retroflow.evaluation.perplexity import Measure

SMALL_GAIN = 0.01
"""Gains below this share are called small: two seeds of a small run differ by about as much."""

MODES = {
    "on": "neighbours as found",
    "shuffled": "those of another chunk",
    "random": "random database chunks",
    "off": "same weights, none",
}
"""How text was retrieved in each row of the table, the table's order."""

DEFINITIONS = {
    "loss": "nats per predicted token over the whole validation split, every token once",
    "bits_per_byte": "nats / (ln 2 * UTF-8 bytes of the text)",
    "gain": "1 - loss with retrieval / loss of the opponent",
    "overlap": "longest run of tokens a chunk shares with its retrieved text / chunk length",
    **MODES,
}


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        measures: by mode, "off" always, the others if the model retrieves.
        without_neighbours: share of validation chunks for which nothing was found.
        overlap: losses by overlap of the chunk with its retrieved text.
        training: steps, tokens, seconds and the like, for the record.
    """

    measures: dict[str, Measure]
    without_neighbours: float = 0.0
    overlap: list[OverlapBucket] = field(default_factory=list)
    training: dict[str, float | int | str | bool] = field(default_factory=dict)

    def gain(self, opponent: str) -> float:
        """How much lower the loss with retrieval is than that of an opponent, as a share of the latter."""
        return 1.0 - self.measures["on"].nats / self.measures[opponent].nats

    def findings(self) -> list[str]:
        """Sentences that keep a reader from seeing more in the table than there is."""
        if "on" not in self.measures:
            return ["This model was trained without retrieval; it is an opponent for one that was."]
        against_shuffled, against_off = self.gain("shuffled"), self.gain("off")
        sentences = []
        if against_shuffled < SMALL_GAIN:
            better = f"only {against_shuffled:.1%}" if against_shuffled >= 0.001 else "no"
            sentences.append(
                f"The gain is small: retrieval is {better} better than another chunk's neighbours. "
                "Related text may be scarce in this corpus, or the model has not learned to read it yet."
            )
        if against_off < 0:
            sentences.append(f"Retrieval hurts: the loss is {-against_off:.1%} higher than without it.")
        if self.overlap and self.overlap[0].above == 0.0 and against_shuffled >= SMALL_GAIN:
            low = self.overlap[0]
            gain = 1.0 - low.loss_on / low.loss_off
            if gain < SMALL_GAIN:
                sentences.append(
                    f"The gain comes from copying: on chunks that share at most {low.up_to:.1%} of their tokens in a "
                    f"row with the retrieved text it is {gain:.1%}."
                )
        if self.without_neighbours > 0.0:
            sentences.append(f"Nothing was retrieved for {self.without_neighbours:.1%} of the validation chunks.")
        if self.training.get("stopped_by_time"):
            sentences.append(
                f"Training was stopped by trainer.max_seconds after {self.training['steps']} of "
                f"{self.training['max_steps']} steps, before the learning rate reached its end."
            )
        return sentences

    def headline(self) -> dict[str, float]:
        """The few numbers that runs are compared by."""
        numbers = {f"validation/bits_per_byte_{mode}": value.bits_per_byte for mode, value in self.measures.items()}
        if "on" in self.measures:
            numbers |= {f"validation/gain_over_{mode}": self.gain(mode) for mode in self.measures if mode != "on"}
        return numbers

    def to_json(self) -> dict[str, object]:
        """Everything but the per-chunk losses, as JSON values."""
        modes = {mode: _measure_json(self.measures[mode]) for mode in MODES if mode in self.measures}
        gains = {
            f"gain_over_{mode}": self.gain(mode) for mode in ("off", "shuffled", "random") if "on" in self.measures
        }
        any_measure = self.measures["off"]
        return {
            "report_version": 1,
            "definitions": DEFINITIONS,
            "validation": modes,
            **gains,
            "predicted_tokens": any_measure.tokens,
            "bytes": any_measure.bytes,
            "share_without_neighbours": self.without_neighbours,
            "by_overlap": [asdict(bucket) for bucket in self.overlap],
            "training": self.training,
            "findings": self.findings(),
        }

    def render(self) -> Group:
        """The report for a terminal or a file, by rich."""
        return Group(*self.tables(), *map(Text, self.findings()))

    def tables(self) -> list[Table]:
        """The report's numbers alone, by rich."""
        return [self._table(), self._overlap_table()] if self.overlap else [self._table()]

    def _table(self) -> Table:
        any_measure = self.measures["off"]
        table = Table(
            title=f"validation: {any_measure.tokens:,} tokens, {any_measure.bytes:,} bytes", title_justify="left"
        )
        table.add_column("retrieval")
        for heading in ("nats/token", "bits/byte", "gain of on"):
            table.add_column(heading, justify="right")
        table.add_column("neighbours")
        for mode, meaning in MODES.items():
            if mode in self.measures:
                gain = "" if mode == "on" or "on" not in self.measures else f"{self.gain(mode):.1%}"
                measure = self.measures[mode]
                table.add_row(mode, f"{measure.loss:.4f}", f"{measure.bits_per_byte:.4f}", gain, meaning)
        return table

    def _overlap_table(self) -> Table:
        table = Table(title="by overlap of the chunk with its retrieved text", title_justify="left")
        for heading in ("overlap", "tokens", "on", "off", "gain"):
            table.add_column(heading, justify="right")
        for bucket in self.overlap:
            table.add_row(
                f"{bucket.above:.1%} to {bucket.up_to:.1%}",
                f"{bucket.tokens:,}",
                f"{bucket.loss_on:.4f}",
                f"{bucket.loss_off:.4f}",
                f"{1.0 - bucket.loss_on / bucket.loss_off:.1%}",
            )
        return table


def _measure_json(measure: Measure) -> dict[str, float | int]:
    return {
        "loss": measure.loss,
        "bits_per_byte": measure.bits_per_byte,
        "perplexity": measure.perplexity,
        "nats": measure.nats,
        "seconds": round(measure.seconds, 3),
    }
