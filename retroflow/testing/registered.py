"""A contract suite for a component that a registry names, for `retroflow components check`."""

import os
from collections.abc import Iterator, Mapping
from glob import glob
from typing import Any, NamedTuple

import torch

from retroflow import testing
from retroflow.components import KINDS, create
from retroflow.errors import RetroflowError
from retroflow.testing.contract import Contract, Rule, RuleRunner
from retroflow.testing.rule_process import outcome_of

DERIVED = {"model": {"vocabulary_size": 64, "chunk_length": 4}}
"""What a recipe's other sections would decide, by kind: small, so that every rule is fast."""

_SUITES = {
    "corpus": ("CorpusContract", "make_corpus"),
    "embedder": ("EmbedderContract", "make_embedder"),
    "retriever": ("RetrieverContract", "make_retriever"),
    "model": ("ModelContract", "make_config"),
    "tracker": ("TrackerContract", "make_tracker"),
}


class Outcome(NamedTuple):
    """What came of a rule.

    Attributes:
        rule: its name.
        outcome: "pass", "fail" or "skip".
        why: what a failed or skipped rule said; empty for one that is kept.
    """

    rule: str
    outcome: str
    why: str


def suite_of(kind: str, name: str, options: Mapping[str, Any]) -> type[Contract]:
    """Make the suite class of a component; the process that runs its rules makes it again from the same arguments."""
    registry = next(registry for registry in KINDS if registry.kind == kind)
    suite, method = _SUITES[kind]

    def make(self: Contract) -> Any:
        return create(registry, {**options, "name": name}, **DERIVED.get(kind, {}))

    members = {method: make, "make": make, "registered": (kind, name, dict(options)), "__module__": __name__}
    return type(f"{suite}Of{name}", (getattr(testing, suite),), members)


def check(kind: str, name: str, options: Mapping[str, Any]) -> Iterator[Outcome]:
    """Run a component's rules; if it cannot even be made, no others.

    Args:
        kind: of registry, "retriever".
        name: the component's.
        options: as in a recipe.
    """
    suite = suite_of(kind, name, _absolute("", options))
    with RuleRunner(suite) as runner:
        for rule in (can_be_made, *suite.rules().values()):
            outcome = _run(runner, rule)
            yield outcome
            if rule is can_be_made and outcome.outcome == "fail":
                return


def _absolute(key: str, value: Any) -> Any:
    """Make what names files here name them in every process, whatever its current folder.

    Other text without a slash or a dot is a name, such as a package's, and a pattern is relative to something else.
    """
    if isinstance(value, list):
        return [_absolute(key, each) for each in value]
    if isinstance(value, Mapping):
        return {name: _absolute(name, each) for name, each in value.items()}
    if not isinstance(value, str):
        return value
    is_here = glob(value) if key.endswith("path") else ("/" in value or "." in value) and os.path.exists(value)
    return os.path.abspath(value) if is_here else value


def can_be_made(case: Any) -> None:
    """Its files are there, too: what is missing is said once, and not by every rule."""
    made = case.suite.make()
    try:
        if isinstance(case.suite, testing.CorpusContract):
            next(iter(made.documents()), None)
        if isinstance(case.suite, testing.ModelContract):
            with torch.device("meta"):
                made.build()
    except RetroflowError:
        raise
    except Exception:
        return  # a rule fails for it


def _run(runner: RuleRunner, rule: Rule) -> Outcome:
    outcome, said = outcome_of(lambda: runner.run(rule))
    why = "" if outcome == "ok" else str(said).removeprefix(f"{rule.__name__}: ")
    return Outcome(rule.__name__, {"ok": "pass", "skipped": "skip", "failed": "fail"}[outcome], why)
