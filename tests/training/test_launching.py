"""Which rank is named when a job ends, and that a suspended rank is noticed."""

import os
import pickle
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from retroflow.distributed import launching
from retroflow.distributed.launching import RankProcess, RankProcesses, RankResult
from retroflow.distributed.ranks import ALONE, LostRanks, Ranks
from retroflow.errors import DamagedDataError, RetroflowError, UsageError
from retroflow.training.data_module import explain_lost_data_workers
from tests.waiting import wait_until

LOST = RankResult(error=(LostRanks, "rank 0 of 3 has lost another rank"))
KNOWS = RankResult(error=(UsageError, "too large"))
CRASHED = RankResult(crash="Traceback")


def ended(*results):
    """Ranks that left these results."""
    return [
        SimpleNamespace(
            rank=number,
            process=SimpleNamespace(pid=70 + number),
            result=lambda result=result: result,
            last_words=lambda: "",
            was_suspended=False,
        )
        for number, result in enumerate(results)
    ]


@pytest.mark.parametrize(
    ("results", "codes", "named", "words"),
    [
        (
            (LOST, RankResult(), LOST),
            (1, -9, 1),
            1,
            r"rank 1 of 3 \(process 71\) was killed by SIGKILL \(out of memory",
        ),
        ((LOST, LOST, KNOWS), (1, 1, 2), 2, "rank 2: too large"),
        ((LOST, CRASHED, LOST), (1, 1, 1), 1, r"rank 1 of 3 \(process 71\) ended with exit code 1"),
        ((LOST, LOST, RankResult()), (1, 1, None), 2, r"rank 2 of 3 \(process 72\) did not answer"),
        ((LOST, LOST, LOST), (1, 1, 1), 0, "rank 0 of 3 has lost another rank"),
    ],
)
def test_the_rank_that_made_the_others_fail_is_named(results, codes, named, words, capsys):
    ranks = ended(*results)
    culprit = launching._culprit(ranks, codes)
    assert culprit.rank == named
    with pytest.raises(RetroflowError, match=words):
        raise launching._failure(culprit, codes[named], 3, SimpleNamespace(signal_number=None))


def test_a_rank_that_is_killed_while_it_says_how_it_ended_has_said_nothing(tmp_path):
    whole = pickle.dumps(KNOWS)
    rank = RankProcess.__new__(RankProcess)
    with (tmp_path / "result").open("w+b") as rank._result:
        for length in range(len(whole)):
            assert rank.result() == RankResult(), length
            rank._result.seek(length)
            rank._result.write(whole[length : length + 1])
        assert rank.result() == KNOWS


@pytest.mark.parametrize(("code", "is_terminal", "shown"), [(-9, True, "\n\x1b[?25h"), (1, True, ""), (-9, False, "")])
def test_the_live_line_of_a_rank_0_that_was_killed_is_left_with_the_cursor_shown(
    monkeypatch, capsys, code, is_terminal, shown
):
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal, raising=False)
    processes = RankProcesses.__new__(RankProcesses)
    processes.ranks = [SimpleNamespace(code=code, end=lambda: None), SimpleNamespace(code=-9, end=lambda: None)]
    processes.end()
    assert capsys.readouterr().err == shown


def test_a_rank_that_is_suspended_for_long_is_ended_and_one_that_goes_on_is_not(monkeypatch):
    monkeypatch.setattr(launching, "_SUSPENDED_SECONDS", 1.0)
    rank = RankProcess.__new__(RankProcess)
    rank.rank, rank.was_suspended, rank._suspended_seconds = 1, False, 0.0
    rank.process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        for _ in range(3):
            os.kill(rank.process.pid, signal.SIGSTOP)
            wait_until(lambda: launching._is_suspended(rank.process.pid))
            rank.watch(0.9)
            os.kill(rank.process.pid, signal.SIGCONT)
            wait_until(lambda: not launching._is_suspended(rank.process.pid))
            rank.watch(0.9)
            assert rank.code is None and not rank.was_suspended
        os.kill(rank.process.pid, signal.SIGSTOP)
        wait_until(lambda: launching._is_suspended(rank.process.pid))
        for _ in range(20):  # a killed rank is looked at, too, until it is reaped
            rank.watch(0.9)
        wait_until(lambda: rank.code == -signal.SIGKILL)
        assert rank.was_suspended
        assert "was suspended by a signal for 1 s" in launching._end_of(rank, rank.code)
    finally:
        rank.process.kill()
        rank.process.wait()


@pytest.mark.parametrize(("ranks", "whose"), [(ALONE, "training"), (Ranks(1, 2, 1, 2, "torchrun"), "rank 1 of 2")])
def test_a_lost_data_worker_is_no_bug_and_its_rank_is_named(ranks, whose):
    with pytest.raises(RetroflowError, match=rf"{whose} lost a data worker: .*\(pid 7\).*resume='last'"):
        with explain_lost_data_workers(ranks):
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    for sign in (ConnectionResetError(104, "Connection reset by peer"), EOFError()):  # in the middle of a batch
        with (
            pytest.raises(RetroflowError, match=rf"{whose} lost a data worker: "),
            explain_lost_data_workers(ranks),
        ):
            raise sign
    masked = RuntimeError("enforce fail: unexpected pos")  # by torch's zip writer, when the error leaves it
    masked.__context__ = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    with pytest.raises(RetroflowError, match=r"\(pid 7\)"), explain_lost_data_workers(ranks):
        raise masked
    with pytest.raises(RuntimeError, match="something else"), explain_lost_data_workers(ranks):
        raise RuntimeError("something else")


class Failing(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, number):
        raise DamagedDataError('"tokens.npy" is damaged: it was truncated.\nDelete the folder.')


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_a_data_worker_refuses_is_said_as_it_is(num_workers):
    with pytest.raises(DamagedDataError) as caught, explain_lost_data_workers(ALONE):
        list(torch.utils.data.DataLoader(Failing(), num_workers=num_workers))
    assert str(caught.value) == '"tokens.npy" is damaged: it was truncated.\nDelete the folder.'
