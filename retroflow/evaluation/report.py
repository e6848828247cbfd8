"""The report at the end of a run: a table for people, JSON for programs, and remarks on their limits."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from retroflow.evaluation.intervals import Interval
from retroflow.evaluation.leakage import OverlapBucket, overlap_statement
from retroflow.evaluation.modes import MODES as DECLARED
from retroflow.evaluation.opponents import Opponents
from retroflow.evaluation.perplexity import Measure

SMALL_GAIN = 0.01
"""Gains below this share are called small; two seeds of a small run differ by about as much."""

MODES = {name: DECLARED[name].neighbours for name in ("on", "shuffled", "random", "off")}
"""Where the retrieved text comes from in each row of the table, in the table's order."""

OPPONENTS = {
    "on": "read",
    "random": "random chunks read",
    "in_context": "in the base's prompt, the best first",
    "in_context_ram": "one over the start of the window",
    "off": "none",
    "in_context_trained": "in a trained base's prompt",
    "in_context_trained_random": "random chunks in that prompt",
    "base_trained": "none, a trained base",
}
"""What is done with the neighbours in each row of the second table, in its order; the trained ones can be missing."""

DEFINITIONS = {
    "loss": "nats per predicted token over the validation split, or the sample of it that is stated, every token once",
    "bits_per_byte": "nats / (ln 2 * UTF-8 bytes of the text)",
    "gain": "1 - loss with retrieval / loss of the baseline",
    "seconds_per_token": "duration of the measurement / predicted tokens; on encodes each neighbour for the first time",
    "recovered": "(off - on) / (off - in_context) of the losses in opponents: the share of in-context's gain",
    "in_context": "base alone: all neighbours with continuations, the best first, then the sequence so far",
    "in_context_ram": "base alone, after Ram et al. 2023: the best neighbour with its continuation, up to 256 tokens, "
    "over the start of a window of a sequence's length; query and stride are a chunk",
    "base_trained": "base with low-rank maps (LoRA) on its linear ones, at least as many weights as learned to read, "
    "trained for as many seconds, on a CPU of the process (cpu_seconds)",
    "in_context_trained": "in_context of such a base, trained with passages in its prompt; _random: random ones",
    "recovered_trained": "(base_trained - on) / (base_trained - in_context_trained) of the losses in opponents",
    "gain_over_random_minus_in_context_trained": "(random - on) - (in_context_trained_random - in_context_trained) of "
    "the losses in opponents",
    "intervals": "95 % of bootstrap resamples of documents, paired, in nats per token; of recovered a share",
    "overlap": "longest run of tokens a chunk shares with its retrieved text (with frequent lookups: with what its "
    "tokens read) / chunk length",
    "by_overlap": "chunks whose overlap is at_least and not below, or 1 in the last bucket; below 0.125, fewer than 8 "
    "of 64 tokens, is no local leakage (Borgeaud et al. 2022, 4.4)",
    **MODES,
}


@dataclass(frozen=True)
class Lookups:
    """Lookups more often than once a chunk.

    Attributes:
        step: tokens between two of them.
        k: neighbours that each finds.
        seconds: that all of them took, beside the durations of the measures.
    """

    step: int
    k: int
    seconds: float


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        measures: by mode; always "off", the others if the model retrieves.
        without_neighbours: share of validation chunks without any neighbour.
        overlap: losses by overlap of the chunk with its retrieved text.
        training: how the model was trained: steps, tokens, seconds and the like.
        measured: checkpoint and its SHA-256, step, and overrides of the training's recipe.
        sample: number of "sequences" that were measured, "of" the validation split's; None for all of them.
        opponents: losses of a pretrained base with the same neighbours in its prompt; None if that was not measured.
        lookups: for "on", "shuffled" and "random"; None if the neighbours of whole chunks were read.
        intervals: 95 % intervals of differences in nats per token, such as "on_minus_random"; None without bounds.
        warnings: what must not be overlooked.
    """

    measures: dict[str, Measure]
    without_neighbours: float = 0.0
    overlap: list[OverlapBucket] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    sample: dict[str, int] | None = None
    opponents: Opponents | None = None
    lookups: Lookups | None = None
    intervals: dict[str, Interval | None] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def gain(self, baseline: str) -> float:
        """Return how much lower the loss with retrieval is than a baseline's, as a share of the latter."""
        return 1.0 - self.measures["on"].nats / self.measures[baseline].nats

    @property
    def overlap_statement(self) -> str | None:
        """How much of the gain overlap can explain; None if that was not measured, and then no gain is shown."""
        return overlap_statement(self.overlap)

    def findings(self) -> list[str]:
        """Return remarks against wrong conclusions from the table."""
        trained_with_retrieval = self.training.get("retrieval", "on" in self.measures)
        if "on" in self.measures:
            sentences = self._of_retrieval()
            if not trained_with_retrieval:
                sentences.append("Measured with retrieval, though the model was trained without it.")
        elif trained_with_retrieval:
            sentences = [
                "Measured without retrieval, though the model was trained with it: no fair baseline for one that was "
                "trained without."
            ]
        else:
            sentences = ["This model was trained without retrieval; it is a baseline for one trained with retrieval."]
        compared = [] if self.opponents is None else self.opponents.findings()
        return [*self.warnings, *sentences, *compared, *self._of_training(), *self._about()]

    def _of_training(self) -> list[str]:
        sentences = []
        steps, max_steps = self.training.get("steps", 0), self.training.get("max_steps", 0)
        if self.training.get("stopped_by_time"):
            sentences.append(
                f"Training was stopped by trainer.max_seconds after {steps} of {max_steps} steps, before the learning "
                "rate reached its end."
            )
        elif self.training.get("max_steps") == 0:
            sentences.append("Nothing was trained (trainer.max_steps is 0): the model is as it was built.")
        elif steps < max_steps:
            sentences.append(f"Measured after {steps} of {max_steps} steps: the training was not finished.")
        if overrides := self.measured.get("overrides"):
            listed = ", ".join(f"{key}={_as_typed(value)}" for key, value in overrides.items())
            sentences.append(f"Measured with values that differ from training: {listed}.")
        return sentences

    def _of_retrieval(self) -> list[str]:
        if self.overlap_statement is None:
            return ["The overlap with the retrieved text was not measured, so no gain is shown."]
        against_shuffled, against_off = self.gain("shuffled"), self.gain("off")
        sentences = [self.overlap_statement]
        if against_shuffled < SMALL_GAIN:
            better = f"only {against_shuffled:.1%}" if against_shuffled >= 0.001 else "no"
            sentences.append(
                f"The gain is small: retrieval is {better} better than another chunk's neighbours. "
                "Related text may be scarce in this corpus, or the model has not learned to use it yet."
            )
        if against_off <= -SMALL_GAIN:
            sentences.append(f"Retrieval hurts: the loss is {-against_off:.1%} higher than without it.")
        elif against_off < SMALL_GAIN:
            sentences.append(
                f"Retrieval makes little difference: the loss is within {SMALL_GAIN:.0%} of the loss without it."
            )
        low = self.overlap[0]
        if low.at_least == 0.0 and against_shuffled >= SMALL_GAIN:
            gain = 1.0 - low.loss_on / low.loss_off
            if gain < SMALL_GAIN:
                sentences.append(
                    f"The gain comes from copying: on chunks that share less than {low.below:.1%} of their tokens in a "
                    f"row with the retrieved text it is {_gain_text(gain)}."
                )
        if self.without_neighbours > 0.0:
            share = f"{self.without_neighbours:.1%}" if self.without_neighbours >= 0.0005 else "less than 0.1%"
            sentences.append(f"Nothing was retrieved for {share} of the validation chunks.")
        return sentences

    def _about(self) -> list[str]:
        """Return remarks on lookups, on a sample, and on a run that was trained longer."""
        sampled = []
        if self.lookups is not None:
            sampled.append(
                f"on, shuffled and random read neighbours that were looked up every {self.lookups.step} tokens, "
                f"{self.lookups.k} each time ({self.lookups.seconds:,.1f} s for all lookups, not in ms/token). Prompts "
                "have those of the last whole chunk."
            )
        if self.sample is not None:
            sampled.append(
                f"Only a sample was measured: {self.sample['sequences']:,} of the {self.sample['of']:,} validation "
                "sequences, evenly spaced (trainer.final_sequences)."
            )
        schedules = self.training.get("schedules", [])
        return sampled + [
            f"Trained longer from step {schedule['first_step']:,} on, as a run of {schedule['max_steps']:,} steps: the "
            "learning rate changed there."
            for schedule in schedules[1:]
        ]

    def headline(self) -> dict[str, float]:
        """Return the few numbers by which runs are compared."""
        numbers = {f"validation/bits_per_byte_{mode}": value.bits_per_byte for mode, value in self.measures.items()}
        if "on" in self.measures:
            numbers |= {f"validation/gain_over_{mode}": self.gain(mode) for mode in self.measures if mode != "on"}
        if self.opponents is not None and self.opponents.recovered is not None:
            numbers["validation/recovered"] = self.opponents.recovered
        return numbers

    def to_json(self) -> dict[str, object]:
        """Everything but the per-chunk losses, as JSON values."""
        modes = {mode: _measure_json(self.measures[mode]) for mode in MODES if mode in self.measures}
        gains = {
            f"gain_over_{mode}": self.gain(mode) for mode in ("off", "shuffled", "random") if "on" in self.measures
        }
        any_measure = self.measures["off"]
        return {
            "report_version": 5,
            "definitions": DEFINITIONS,
            "validation": modes,
            **gains,
            "intervals": _bounds_json(self.intervals),
            **self._opponents_json(),
            "sample": self.sample,
            "lookups": self.lookups and asdict(self.lookups),
            "predicted_tokens": any_measure.tokens,
            "bytes": any_measure.bytes,
            "share_without_neighbours": self.without_neighbours,
            "by_overlap": [asdict(bucket) for bucket in self.overlap],
            "overlap_statement": self.overlap_statement,
            "training": self.training,
            "measured": self.measured,
            "warnings": self.warnings,
            "findings": self.findings(),
        }

    def _opponents_json(self) -> dict[str, object]:
        found = self.opponents
        if found is None:
            return {}
        any_measure = found.measures["off"]
        values = {
            "sequences": found.sequences,
            "of": found.of,
            "documents": found.documents,
            "predicted_tokens": any_measure.tokens,
            "bytes": any_measure.bytes,
            "validation": {mode: _measure_json(found.measures[mode]) for mode in OPPONENTS if mode in found.measures},
            "trained": found.trained,
            "intervals": _bounds_json(found.intervals),
        }
        shares = {"recovered": found.recovered}
        if found.trained:
            shares["recovered_trained"] = found.recovered_trained
        return shares | {"opponents": values}

    def render(self) -> Group:
        """Return the report for a terminal or a file, for rich."""
        return Group(*self.tables(), *said(self.warnings, self.findings()))

    def tables(self) -> list[Table]:
        """Return only the report's tables, for rich."""
        tables = [self._table()]
        if self.opponents is not None and self.overlap_statement is not None:
            tables.append(_opponents_table(self.opponents))
        return [*tables, self._overlap_table()] if self.overlap else tables

    def _table(self) -> Table:
        any_measure = self.measures["off"]
        size = f"{any_measure.tokens:,} tokens, {any_measure.bytes:,} bytes"
        if self.sample is not None:
            size += f", a sample of {self.sample['sequences']:,} of {self.sample['of']:,} sequences"
        table = Table(title=f"validation: {size}", title_justify="left")
        table.add_column("retrieval")
        for heading in ("nats/token", "bits/byte", "gain of on", "ms/token"):
            table.add_column(heading, justify="right")
        table.add_column("neighbours")
        shows_gains = "on" in self.measures and self.overlap_statement is not None
        for mode, meaning in MODES.items():
            if mode in self.measures:
                gain = _gain_text(self.gain(mode)) if shows_gains and mode != "on" else ""
                measure = self.measures[mode]
                table.add_row(*_numbers(mode, measure), gain, _milliseconds(measure), meaning)
        return table

    def _overlap_table(self) -> Table:
        table = Table(title="by overlap of the chunk with its retrieved text (from, and below)", title_justify="left")
        for heading in ("overlap", "tokens", "on", "off", "gain"):
            table.add_column(heading, justify="right")
        for bucket in self.overlap:
            table.add_row(
                f"{bucket.at_least:.1%} to {bucket.below:.1%}",
                f"{bucket.tokens:,}",
                f"{bucket.loss_on:.4f}",
                f"{bucket.loss_off:.4f}",
                _gain_text(1.0 - bucket.loss_on / bucket.loss_off),
            )
        return table


def said(warnings: Sequence[str], findings: Sequence[str]) -> list[Text]:
    """Return findings for a terminal; those that are warnings cannot be overlooked."""
    return [Text(f"WARNING: {each}", style="bold red") if each in warnings else Text(each) for each in findings]


def _opponents_table(opponents: Opponents) -> Table:
    """Return the table of what the same neighbours are worth in the base's prompt."""
    tokens = opponents.measures["off"].tokens
    table = Table(
        title=f"the same neighbours in the base's prompt: {tokens:,} tokens of {opponents.sequences:,} of "
        f"{opponents.of:,} sequences, without the first chunk of each (trainer.in_context_sequences)",
        title_justify="left",
    )
    table.add_column("retrieval", overflow="fold")  # or names would end alike
    for heading in ("nats/token", "bits/byte", "nats below off (95%)", "ms/token"):
        table.add_column(heading, justify="right")
    table.add_column("neighbours")
    for mode, meaning in OPPONENTS.items():
        if mode not in opponents.measures:
            continue
        measure, bounds = opponents.measures[mode], opponents.intervals.get(f"{mode}_minus_off")
        below = "" if mode == "off" else f"{opponents.measures['off'].loss - measure.loss:.3f}"
        if bounds is not None:
            below += f" ({-bounds[1]:.3f} to {-bounds[0]:.3f})"
        table.add_row(*_numbers(mode, measure), below, _milliseconds(measure), meaning)
    return table


def _numbers(mode: str, measure: Measure) -> tuple[str, str, str]:
    return mode, f"{measure.loss:.4f}", f"{measure.bits_per_byte:.4f}"


def _milliseconds(measure: Measure) -> str:
    return f"{1000 * measure.seconds_per_token:.3g}"


def _gain_text(gain: float) -> str:
    """Format a gain with one decimal; zero has no sign."""
    text = f"{gain:.1%}"
    return "0.0%" if text == "-0.0%" else text


def _as_typed(value: Any) -> str:
    """Format an override's value as on a command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _bounds_json(intervals: Mapping[str, Interval | None]) -> dict[str, list[float] | None]:
    return {name: bounds and list(bounds) for name, bounds in intervals.items()}


def _measure_json(measure: Measure) -> dict[str, float | int]:
    return {
        "loss": measure.loss,
        "bits_per_byte": measure.bits_per_byte,
        "perplexity": measure.perplexity,
        "nats": measure.nats,
        "seconds": measure.seconds,
        "seconds_per_token": measure.seconds_per_token,
    }
