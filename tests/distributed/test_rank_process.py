"""How a rank says that it ended: whatever ends it from inside is never a success."""

import faulthandler
import os
import pickle
import sys
import tempfile

import pytest

from retroflow.distributed import rank_process
from retroflow.distributed.launching import Order, Outcome
from retroflow.errors import OutOfMemory, RankEnded, UsageError
from retroflow.training import fit as fit_module


@pytest.fixture
def ended(monkeypatch):
    """Run a rank whose `fit` raises an error; returns its outcome and exit code."""

    def run(error: BaseException) -> tuple[Outcome, int]:
        def fit(*words, **options):
            raise error

        def leave(code):
            raise InterruptedError(code)

        monkeypatch.setattr(fit_module, "fit", fit)
        monkeypatch.setattr(rank_process, "end_with_parent", lambda parent: None)
        monkeypatch.setattr(faulthandler, "enable", lambda: None)
        monkeypatch.setenv(rank_process.LAUNCHED, "1")
        monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
        monkeypatch.setattr(sys, "exit", leave)
        monkeypatch.setattr(os, "_exit", leave)
        with tempfile.TemporaryFile() as order, tempfile.TemporaryFile() as outcome:
            order.write(pickle.dumps(Order(None, None, None, None)))
            order.flush()
            with pytest.raises(InterruptedError) as caught:
                rank_process.main(order.fileno(), os.dup(outcome.fileno()))
            outcome.seek(0)
            return pickle.load(outcome), caught.value.args[0]

    return run


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(), SystemExit(75), ZeroDivisionError("x")], ids=repr)
def test_an_exit_from_inside_is_a_crash(ended, error):
    outcome, code = ended(error)
    assert code == 1 and outcome.error is None and type(error).__name__ in outcome.crash


def test_a_rank_that_leaves_since_rank_0_failed_has_its_code_and_nothing_to_say(ended):
    assert ended(RankEnded(3)) == (Outcome(), 3)
    assert ended(UsageError("no")) == (Outcome(error=(UsageError, "no")), 2)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried"), MemoryError("CUDA out of memory. Tried")])
def test_a_rank_without_memory_says_so(ended, error):
    outcome, code = ended(error)
    assert (outcome.error, code) == ((OutOfMemory, "CUDA out of memory. Tried"), 1)
