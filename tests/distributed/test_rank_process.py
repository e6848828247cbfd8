"""How a rank says that it ended: whatever ends it from inside is never a success."""

import faulthandler
import os
import pickle
import sys
import tempfile
from functools import partial

import pytest

from retroflow.distributed import rank_process
from retroflow.distributed.launching import RankResult
from retroflow.errors import OutOfMemory, RankEnded, UsageError


def fail(error):
    raise error


@pytest.fixture
def ended(monkeypatch):
    """Run a rank whose task raises an error; returns its result and exit code."""

    def run(error: BaseException) -> tuple[RankResult, int]:
        def leave(code):
            raise InterruptedError(code)

        monkeypatch.setattr(rank_process, "end_with_parent", lambda parent: None)
        monkeypatch.setattr(faulthandler, "enable", lambda: None)
        monkeypatch.setenv(rank_process.LAUNCHED, "1")
        monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
        monkeypatch.setattr(sys, "exit", leave)
        monkeypatch.setattr(os, "_exit", leave)
        with tempfile.TemporaryFile() as task, tempfile.TemporaryFile() as result:
            task.write(pickle.dumps(partial(fail, error)))
            task.flush()
            with pytest.raises(InterruptedError) as caught:
                rank_process.main(task.fileno(), os.dup(result.fileno()))
            result.seek(0)
            return pickle.load(result), caught.value.args[0]

    return run


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(), SystemExit(75), ZeroDivisionError("x")], ids=repr)
def test_an_exit_from_inside_is_a_crash(ended, error):
    result, code = ended(error)
    assert code == 1 and result.error is None and type(error).__name__ in result.crash


def test_a_rank_that_leaves_since_rank_0_failed_has_its_code_and_nothing_to_say(ended):
    assert ended(RankEnded(3)) == (RankResult(), 3)
    assert ended(UsageError("no")) == (RankResult(error=(UsageError, "no")), 2)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried"), MemoryError("CUDA out of memory. Tried")])
def test_a_rank_without_memory_says_so(ended, error):
    result, code = ended(error)
    assert (result.error, code) == ((OutOfMemory, "CUDA out of memory. Tried"), 1)
