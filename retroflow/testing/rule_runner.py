"""Runs the rules of one suite class for pytest: in a process of their own, or here to debug them."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retroflow.testing.rule_process import RuleProcess, RuleProcessError

MOST_HANGS = 2  # a hang costs all of its seconds; a retriever that hangs in build() would cost them for every rule


class RuleRunner:
    """The rules of one suite class, one process for all of them.

    Args:
        suite: the author's subclass of a contract: has `own_process`, `seconds` and `make_case`.
    """

    def __init__(self, suite: Any) -> None:
        self._suite = suite
        self._process = RuleProcess()
        self._folder = tempfile.TemporaryDirectory(prefix="retroflow-contract-", ignore_cleanup_errors=True)
        self._case: Any = None
        self._hangs = 0

    def run(self, rule: Callable[[Any], None]) -> None:
        """Run a rule; whatever came of it is the outcome of the pytest test that asks."""
        __tracebackhide__ = True
        if not self._suite.own_process:
            self._case = self._case or self._suite.make_case(Path(self._folder.name))
            rule(self._case)
            return
        if self._hangs >= MOST_HANGS:
            pytest.fail(f"not run: {self._hangs} rules have hung, {self._suite.seconds:g} s each", pytrace=False)
        fault: Exception | None = None  # failed outside the handler, or pytest shows it twice
        try:
            self._process.call(self._suite, rule, seconds=self._suite.seconds)
        except (RuleProcessError, AssertionError) as error:
            fault = error
            self._hangs += isinstance(error, RuleProcessError) and error.hung
        if fault is not None:
            pytest.fail(f"{rule.__name__}: {fault}", pytrace=False)

    def close(self) -> None:
        """End the processes and remove their files."""
        self._process.close()
        if self._case is not None:
            self._case.close()
        self._folder.cleanup()
