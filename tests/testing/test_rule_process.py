"""The process that rules run in: what it returns, what it is told, and that nothing of it is left behind."""

import faulthandler
import os
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retroflow.testing import RetrieverContract, rule_process
from retroflow.testing.contract import RuleRunner
from retroflow.testing.retriever_rules.case import RetrieverCase
from retroflow.testing.rule_process import RuleProcess, RuleProcessError
from tests.testing.right_retriever import Right

PATIENCE_SECONDS = 60


class Suite(RetrieverContract):
    __test__ = False

    def make_retriever(self) -> Right:
        return Right()


class InTheProcessOfPytest(Suite):
    own_process = False


def process_id(case: RetrieverCase) -> int:
    return os.getpid()


def skip(case: RetrieverCase) -> None:
    pytest.skip("there is nothing to do")


def hang(case: RetrieverCase, note: str = "") -> None:
    if note:
        Path(note).write_text(str(os.getpid()))
    time.sleep(PATIENCE_SECONDS)


def hang_deaf(case: RetrieverCase) -> None:
    """Hang with nobody in the process who notices, as after SIGSTOP."""
    faulthandler.cancel_dump_traceback_later()
    time.sleep(PATIENCE_SECONDS)


@pytest.fixture
def process() -> Iterator[RuleProcess]:
    started = RuleProcess()
    yield started
    started.close()


def test_one_process_answers_until_it_dies(process: RuleProcess) -> None:
    first = process.call(Suite, process_id, seconds=PATIENCE_SECONDS)
    assert first == process.call(Suite, process_id, seconds=PATIENCE_SECONDS) != os.getpid()
    with pytest.raises(RuleProcessError, match=r"still running after 1 s[\s\S]*in hang") as raised:
        process.call(Suite, hang, seconds=1)
    assert raised.value.hung
    assert process.call(Suite, process_id, seconds=PATIENCE_SECONDS) != first


def test_a_process_that_does_not_end_itself_is_ended(process: RuleProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_process, "GRACE_SECONDS", 0.5)
    process.call(Suite, process_id, seconds=PATIENCE_SECONDS)
    with pytest.raises(RuleProcessError, match="still running after 1 s") as raised:
        process.call(Suite, hang_deaf, seconds=1)
    assert raised.value.hung


def test_a_skip_there_is_a_skip_here(process: RuleProcess) -> None:
    with pytest.raises(unittest.SkipTest, match="there is nothing to do"):
        process.call(Suite, skip, seconds=PATIENCE_SECONDS)


def test_a_suite_inside_a_function_is_told_to_move(process: RuleProcess) -> None:
    class Local(Suite):
        pass

    with pytest.raises(AssertionError, match="Local is defined inside a function; define the suite in its module"):
        process.call(Local, process_id, seconds=PATIENCE_SECONDS)


def test_rules_run_in_the_process_of_pytest_to_be_debugged() -> None:
    runner = RuleRunner(InTheProcessOfPytest)
    seen: list[int] = []
    try:
        runner.run(lambda case: seen.append(os.getpid()))
    finally:
        runner.close()
    assert seen == [os.getpid()]


def ids_here_and_elsewhere(case: RetrieverCase) -> None:
    assert case.elsewhere(process_id) != os.getpid()


def test_no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with RuleRunner(Suite) as runner:
        runner.run(ids_here_and_elsewhere)
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_process_whose_pytest_was_killed_ends(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = (
        "from tests.testing.test_rule_process import Suite, hang\n"
        "from retroflow.testing.rule_process import RuleProcess\n"
        f"RuleProcess().call(Suite, hang, {{'note': {str(note)!r}}}, seconds=3)"
    )
    asking = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    )
    try:
        _wait_until(lambda: note.is_file() and note.read_text() != "")
    finally:
        asking.kill()
        asking.wait()
    _wait_until(lambda: not _is_running(int(note.read_text())))


def _wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process_id}/stat")
    return not (stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z")  # dead, and nobody's child
