"""What a task measured: means over its examples, with intervals, for each way of retrieving.

Intervals of 95 % are by bootstrap over the examples, and paired: each resample is the same for all ways
(retroflow/evaluation/intervals.py).

Shapes: E examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text

from retroflow.evaluation.intervals import interval, resampled_losses

OFF, ON, RANDOM = "off", "on", "random"

WAYS = {
    OFF: "without retrieval",
    ON: "with what the database finds",
    RANDOM: "with random chunks of the database",
}

INTERVAL = "95 % of 2,000 bootstrap resamples of the examples, paired; null for a single example"


@dataclass(frozen=True)
class Metric:
    """One number of every example.

    Attributes:
        name: such as "accuracy".
        meaning: in a sentence.
        values: way -> float64 [E].
        is_log: the result is the exponential of the mean, as for a perplexity.
    """

    name: str
    meaning: str
    values: Mapping[str, NDArray[np.float64]]
    is_log: bool = False


@dataclass(frozen=True)
class TaskResult:
    """What a task measured.

    Attributes:
        task: its name.
        metrics: in the order of the table.
        predictions: one object for every example.
        available: examples in the file, E of which were measured.
        groups: name -> bool [E], examples that are reported apart, too.
        facts: other numbers, by name.
        definitions: what their names mean.
        measured: how, and what.
        seed: of the bootstrap.
    """

    task: str
    metrics: tuple[Metric, ...]
    predictions: list[dict[str, Any]]
    available: int
    groups: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    definitions: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return everything but the predictions, as JSON values."""
        definitions = {metric.name: metric.meaning for metric in self.metrics}
        every = {"all": np.ones(len(self.predictions), dtype=bool), **self.groups}
        return {
            "task_version": 1,
            "task": self.task,
            "definitions": definitions | dict(self.definitions) | {"interval": INTERVAL},
            "measured": dict(self.measured),
            "sample": {"examples": len(self.predictions), "of": self.available},
            "facts": dict(self.facts),
            "warnings": self.warnings,
            "groups": {name: self._group(examples) for name, examples in every.items()},
        }

    @property
    def warnings(self) -> list[str]:
        """Return for which metrics found text is no better than random chunks: what must not be overlooked."""
        sentences = []
        for metric in self.metrics:
            numbers = self._numbers(metric, np.ones(len(self.predictions), dtype=bool))
            difference = numbers.get(ON, {}).get(f"minus_{RANDOM}")
            if difference is None:
                continue
            low, high = difference["interval"] or [difference["value"]] * 2
            is_better = high < 0 if metric.is_log else low > 0
            if not is_better:
                on, random = numbers[ON]["value"], numbers[RANDOM]["value"]
                sentences.append(
                    f"What was found is no better than random chunks: {metric.name} {on:.3f} against {random:.3f} "
                    f"(95% interval of the difference {low:.3f} to {high:.3f})."
                )
        return sentences

    def _group(self, examples: NDArray[np.bool_]) -> dict[str, Any]:
        count = int(examples.sum())
        values: dict[str, Any] = {"examples": count, "ways": {}}
        for metric in self.metrics if count else ():
            for way, numbers in self._numbers(metric, examples).items():
                values["ways"].setdefault(way, {})[metric.name] = numbers
        return values

    def _numbers(self, metric: Metric, examples: NDArray[np.bool_]) -> dict[str, Any]:
        """Return each way's value, and its difference to those of `OFF` and `RANDOM`, with intervals."""
        values = {way: of_way[examples] for way, of_way in metric.values.items()}
        count = int(examples.sum())
        drawn = resampled_losses(values, np.ones(count), seed=self.seed)
        of_mean = np.exp if metric.is_log else np.asarray
        found: dict[str, Any] = {}
        for way, of_way in values.items():
            value, several = float(of_mean(of_way.mean())), of_mean(drawn[way])
            found[way] = {"value": value, "interval": list(interval(several)) if count > 1 else None}
            for other in (OFF, RANDOM):
                if other in values and way not in (OFF, other):
                    change = several - of_mean(drawn[other])
                    found[way][f"minus_{other}"] = {
                        "value": value - float(of_mean(values[other].mean())),
                        "interval": list(interval(change)) if count > 1 else None,
                    }
        return found

    def render(self) -> Group:
        """Return tables for a terminal."""
        shown = self.to_json()
        sample = shown["sample"]
        part = "" if sample["examples"] == sample["of"] else f" of {sample['of']:,}, drawn at random"
        lines: list[Any] = [Text(f"WARNING: {sentence}", style="bold red") for sentence in self.warnings]
        lines.append(Text(f"{self.task}: {sample['examples']:,} examples{part}"))
        for name, values in shown["groups"].items():
            title = f"{name}: {values['examples']:,} examples" if len(shown["groups"]) > 1 else None
            lines.append(_table(title, values["ways"], [metric.name for metric in self.metrics]))
        lines += [Text(f"{name}: {number:.3f}") for name, number in self.facts.items()]
        lines.append(Text("in brackets: 95 % interval by bootstrap over the examples"))
        return Group(*lines)


def _table(title: str | None, ways: Mapping[str, Any], names: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("retrieval")
    for name in names:
        table.add_column(name, justify="right")
        table.add_column("minus off", justify="right")
    for way, numbers in ways.items():
        cells = [way]
        for name in names:
            cells += [_cell(numbers[name]), _cell(numbers[name].get("minus_off"), sign="+")]
        table.add_row(*cells)
    return table


def _cell(number: Mapping[str, Any] | None, sign: str = "") -> str:
    if number is None:
        return ""
    bounds = number["interval"]
    around = "" if bounds is None else f" [{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]"
    return f"{number['value']:{sign}.3f}{around}"
