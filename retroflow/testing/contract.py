"""What all contract suites share: rules in a process of their own, one pytest test a rule.

A rule is a public function of a module of rules. It takes the suite's case, raises if the rule is broken, and raises
`unittest.SkipTest` where it does not apply. Nothing here needs pytest: `retroflow components check` runs rules, too.
"""

import tempfile
from collections.abc import Callable
from inspect import isfunction
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Self

from retroflow.testing.case import Case
from retroflow.testing.rule_process import RuleProcess, RuleProcessError

Rule = Callable[[Any], None]

MOST_HANGS = 2  # a hang costs all of its seconds; a component that hangs when it is made would cost them for every rule


def rules_of(module: ModuleType) -> dict[str, Rule]:
    """Return the public functions that a module defines, by name."""
    functions = {name: value for name, value in vars(module).items() if isfunction(value) and not name.startswith("_")}
    return {name: function for name, function in functions.items() if function.__module__ == module.__name__}


class Contract:
    """A suite of rules; subclass one of its subclasses in a test module, as a class whose name starts with Test.

    Attributes:
        rule_modules: the modules whose public functions are the rules.
        case_class: what the rules are given.
        seconds: after which a rule has hung.
        own_process: rules run in a process of their own, so that a crash or hang fails one rule; False to debug.
    """

    rule_modules: ClassVar[tuple[ModuleType, ...]] = ()
    case_class: ClassVar[type[Case]] = Case
    seconds: ClassVar[float] = 120.0
    own_process: ClassVar[bool] = True
    runner: ClassVar["RuleRunner | None"] = None

    @classmethod
    def rules(cls) -> dict[str, Rule]:
        """Return the rules by name, in the order in which they are written."""
        return {name: rule for module in cls.rule_modules for name, rule in rules_of(module).items()}

    @classmethod
    def make_case(cls, folder: Path) -> Case:
        """Return what the rules work with, in the process that runs them."""
        return cls.case_class(cls(), folder)

    @classmethod
    def teardown_class(cls) -> None:
        """End what the rules ran in."""
        if cls.runner is not None:
            cls.runner.close()
            cls.runner = None

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Make one pytest test of each rule."""
        if "rule" in metafunc.fixturenames:
            metafunc.parametrize("rule", list(self.rules()))

    def test_rule(self, rule: str) -> None:
        """Run one rule."""
        suite = type(self)
        suite.runner = suite.runner or RuleRunner(suite)
        suite.runner.run(self.rules()[rule])


class RuleRunner:
    """Runs the rules of one suite class, in one process for all of them; a context.

    Args:
        suite: a subclass of a contract.
    """

    def __init__(self, suite: type[Contract]) -> None:
        self._suite = suite
        self._process = RuleProcess()
        self._folder = tempfile.TemporaryDirectory(prefix="retroflow-contract-", ignore_cleanup_errors=True)
        self._case: Case | None = None
        self._hangs = 0

    def run(self, rule: Rule) -> None:
        """Run a rule.

        Raises:
            AssertionError: it is broken, or the process ended or hung.
            unittest.SkipTest: it does not apply.
        """
        __tracebackhide__ = True
        if not self._suite.own_process:
            self._case = self._case or self._suite.make_case(Path(self._folder.name))
            rule(self._case)
            return
        if self._hangs >= MOST_HANGS:
            raise AssertionError(f"not run: {self._hangs} rules have hung, {self._suite.seconds:g} s each")
        fault: Exception | None = None  # raised outside the handler, or pytest shows it twice
        try:
            self._process.call(self._suite, rule, seconds=self._suite.seconds)
        except (RuleProcessError, AssertionError) as error:
            fault = error
            self._hangs += isinstance(error, RuleProcessError) and error.hung
        if fault is not None:
            raise AssertionError(f"{rule.__name__}: {fault}")

    def close(self) -> None:
        """End the processes and remove their files."""
        self._process.close()
        if self._case is not None:
            self._case.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
