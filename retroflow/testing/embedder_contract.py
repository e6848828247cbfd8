"""EmbedderContract: what every embedder owes, as a pytest class to subclass.

    class TestMyEmbedder(EmbedderContract):
        def make_embedder(self): return MyEmbedder(dimension=64)
        def make_other_embedder(self): return MyEmbedder(dimension=64, seed=1)

One test a rule, `test_rule[no_texts_give_no_rows]`; the rules are in `retroflow.testing.embedder_rules`, and
docs/writing-an-embedder.md goes through them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from retroflow.protocols import Embedder
from retroflow.testing.embedder_case import EmbedderCase
from retroflow.testing.embedder_rules import RULES
from retroflow.testing.rule_runner import RuleRunner


class EmbedderContract:
    """Subclass it as a class whose name starts with Test, and override `make_embedder`.

    Attributes:
        seconds: after which a rule has hung.
        own_process: rules run in a process of their own, so that a crash or hang fails one rule; False to debug.
    """

    seconds: ClassVar[float] = 120.0
    own_process: ClassVar[bool] = True

    def make_embedder(self) -> Embedder:
        """Return a new embedder, always with the same options; called often, so give the smallest that will do.

        Called in other processes too: use no fixture.
        """
        raise NotImplementedError("override make_embedder() in your subclass of EmbedderContract")

    def make_other_embedder(self) -> Embedder | None:
        """Return one that differs in an option that changes vectors; None if there is no such option."""
        return None

    @classmethod
    def make_case(cls, folder: Path) -> EmbedderCase:
        """Return what the rules work with, in the process that runs them."""
        return EmbedderCase(cls(), folder)

    @pytest.fixture(scope="class")
    @classmethod
    def rule_runner(cls) -> Iterator[RuleRunner]:
        runner = RuleRunner(cls)
        yield runner
        runner.close()

    @pytest.mark.parametrize("rule", RULES)
    def test_rule(self, rule: str, rule_runner: RuleRunner) -> None:
        rule_runner.run(RULES[rule])
