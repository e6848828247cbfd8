"""What every rule works with, whatever the component: a suite, a folder, and another process."""

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retroflow.testing.rule_process import RuleProcess, RuleProcessError, other_hash_seed


class Case:
    """One suite at work in one process.

    Args:
        suite: an instance of the author's subclass of a contract.
        folder: an empty folder for files.
        elsewhere: another process, with another PYTHONHASHSEED and another current folder.
    """

    def __init__(self, suite: Any, folder: Path, elsewhere: RuleProcess | None = None) -> None:
        self.folder, self.suite = folder, suite
        # Beside the folder: a process that is killed cannot remove it, and its parent removes all of that.
        self._elsewhere = elsewhere or RuleProcess(other_hash_seed(), within=folder.parent)

    def scratch(self) -> Path:
        """A new, empty folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def elsewhere(self, function: Any, arguments: Mapping[str, object] | None = None) -> Any:
        """Call function(case, **arguments) in another process.

        Raises:
            AssertionError: it failed there, or ended the process.
        """
        try:
            return self._elsewhere.call(type(self.suite), function, arguments, seconds=self.suite.seconds * 0.8)
        except RuleProcessError as error:
            raise AssertionError(f"in a new process: {error}") from None

    def close(self) -> None:
        """End the other process."""
        self._elsewhere.close()


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Say what a rule was at if it fails there: as a note to the error, and on stderr should the process die."""
    print(f"[{what}]", file=sys.stderr, flush=True)
    try:
        yield
    except BaseException as error:
        error.add_note(what)
        raise


@contextmanager
def refused(error: type[Exception], pattern: str = "") -> Iterator[None]:
    """Assert that the block raises this error, with the pattern found in its message."""
    said = None
    try:
        yield
    except error as raised:
        said = str(raised)
    assert said is not None, f"nothing was raised; {error.__name__} is needed"
    assert re.search(pattern, said), f'"{said}" does not say {pattern!r}'
