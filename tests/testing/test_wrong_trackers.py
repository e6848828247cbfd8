"""TrackerContract fails every tracker that is wrong in one way, by the rule that says why."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from retroflow.protocols import Tracker
from retroflow.testing import TrackerContract
from retroflow.testing.case import Case
from retroflow.testing.rule_process import outcome_of

RULES = TrackerContract.rules()


class Right(Tracker):
    """Keeps lines in the run folder."""

    table_rows = 2

    def __init__(self, *, file: str = "lines.txt") -> None:
        self.file = file

    def start(self, run):
        self.path = run.folder / self.file

    def log(self, metrics, step):
        with self.path.open("a") as file:
            file.write(f"{step} {metrics}\n")


class Lacks:
    """Only what every tracker had once."""

    def start(self, run):
        """Nothing."""


class Positional(Right):
    def __init__(self, file: str = "lines.txt") -> None:
        super().__init__(file=file)


class ComputedDefault(Right):
    def __init__(self, *, file: str = "lines" + ".txt" * len("a")) -> None:
        super().__init__(file=file)


class NegativeRows(Right):
    table_rows = -1


class WantsLosses(Right):
    def show_neighbours(self, examples, step):
        assert all(example.loss_on < 9 for example in examples)


class OnlyOnce(Right):
    def start(self, run):
        super().start(run)
        self.path.touch(exist_ok=False)


class StrictJson(Right):
    def log(self, metrics, step):
        json.dumps(metrics, allow_nan=False)


class NeedsAnExample(Right):
    def show_neighbours(self, examples, step):
        self.first = examples[0]


class OfItsThread(Right):
    def __init__(self, *, file: str = "lines.txt") -> None:
        super().__init__(file=file)
        self.made_in = threading.get_ident()

    def log(self, metrics, step):
        assert threading.get_ident() == self.made_in


class AddsToMetrics(Right):
    def log(self, metrics, step):
        metrics["step"] = step


class Prints(Right):
    def finish(self, summary):
        print(summary)


class Seeds(Right):
    def start(self, run):
        super().start(run)
        torch.manual_seed(len(list(run.folder.parent.iterdir())))


WRONG = [
    (Lacks, "implements_the_protocol"),
    (Positional, "takes_its_options_by_keyword"),
    (ComputedDefault, "has_options_that_a_recipe_can_read"),
    (NegativeRows, "says_what_it_shows"),
    (WantsLosses, "mirrors_a_run"),
    (OnlyOnce, "continues_a_run"),
    (StrictJson, "takes_metrics_that_are_not_finite"),
    (NeedsAnExample, "shows_no_neighbours_if_there_are_none"),
    (OfItsThread, "works_in_a_thread"),
    (AddsToMetrics, "leaves_what_it_is_given_as_it_was"),
    (Prints, "leaves_the_process_as_it_was"),
    (Seeds, "leaves_the_process_as_it_was"),
]


def case_of(tracker: type, folder: Path) -> Case:
    class Suite(TrackerContract):
        def make_tracker(self) -> Any:
            return tracker()

    return Case(Suite(), folder)


@pytest.mark.parametrize(("tracker", "rule"), WRONG, ids=lambda value: getattr(value, "__name__", value))
def test_a_wrong_tracker_fails_its_rule(tracker: type, rule: str, tmp_path: Path) -> None:
    outcome, message = outcome_of(lambda: RULES[rule](case_of(tracker, tmp_path)))
    assert outcome == "failed", f"{tracker.__name__} passes {rule}: {message}"


def test_a_right_tracker_passes_all_rules(tmp_path: Path) -> None:
    case = case_of(Right, tmp_path)
    outcomes = {name: outcome_of(lambda rule=rule: rule(case)) for name, rule in RULES.items()}
    assert not {name: said for name, (outcome, said) in outcomes.items() if outcome != "ok"}
    assert {rule for _, rule in WRONG} == set(RULES), "every rule is seen failing"
