"""Start the ranks of this machine, watch them, and end them together.

A launcher of our own beside torchrun and SLURM: Lightning's makes rank 0 the supervisor, so nobody notices when rank 0
dies, and torch's elastic agent does not report what ranks say (docs/decisions/0028-launching-trial.md). This process
computes nothing while ranks run. Tasks and results travel in unnamed files that ranks inherit, so no file remains
however they end.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

import torch.distributed as dist

from retroflow.console import DESCRIPTOR_OF_RESULTS, say
from retroflow.distributed.ranks import LAUNCHED, LostRanks
from retroflow.distributed.stop_signals import StopRequests
from retroflow.errors import Interrupted, Preempted, RetroflowError

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 3.0
"""Seconds for the other ranks to end by themselves, and to report errors, after one has failed."""

_STOP_SECONDS = 30.0
"""The same after a rank that ended because of a stop signal."""

_SUSPENDED_SECONDS = 30.0
"""Seconds after which a rank that is suspended (SIGSTOP) counts as dead."""

_LAST_WORDS = 4000
"""Bytes that are shown of what a failed rank printed."""

_LEAVE_LIVE_LINE = "\n\x1b[?25h"
"""Ends the progress line of a killed rank 0 and shows the terminal's cursor again."""


@dataclass(frozen=True)
class RankResult:
    """How a rank ended, in its own words.

    Attributes:
        value: what the task returned.
        error: class and message of a RetroflowError that it raised.
        crash: the traceback of any other exception.
    """

    value: Any = None
    error: tuple[type[RetroflowError], str] | None = None
    crash: str = ""


class RankProcess:
    """One rank, as its launcher sees it.

    Attributes:
        rank: its number.
        process: its process.
        was_suspended: whether it was killed because it was suspended.
    """

    def __init__(self, rank: int, environment: dict[str, str], task: IO[bytes]) -> None:
        self.rank = rank
        self.was_suspended = False
        self._suspended_seconds = 0.0
        self._result = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes both
        # Rank 0 prints for all; output of the others is shown only if one of them fails.
        self._errors = None if rank == 0 else tempfile.TemporaryFile()  # noqa: SIM115
        files = (task.fileno(), self._result.fileno())
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "retroflow.distributed.rank_process", *map(str, files)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=DESCRIPTOR_OF_RESULTS.get() if rank == 0 else subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=files,
            # Ctrl-C would reach ranks twice: from the terminal and from this process.
            process_group=0,
        )

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal, None while it runs."""
        return self.process.poll()

    def watch(self, seconds: float) -> None:
        """Kill it if it has been suspended for long, because the other ranks would wait for it.

        Args:
            seconds: since the last call.
        """
        is_suspended = self.code is None and _is_suspended(self.process.pid)
        self._suspended_seconds = self._suspended_seconds + seconds if is_suspended else 0.0
        if self._suspended_seconds > _SUSPENDED_SECONDS:
            self.was_suspended = True
            self.process.kill()

    def result(self) -> RankResult:
        """What the ended rank has reported; empty if it was killed, even while it reported."""
        self._result.seek(0)
        try:
            result: RankResult = pickle.load(self._result)
        except (EOFError, pickle.UnpicklingError):
            return RankResult()
        return result

    def last_words(self) -> str:
        """Return the end of its output."""
        if self._errors is None:
            return ""
        self._errors.seek(0)
        return self._errors.read()[-_LAST_WORDS:].decode(errors="replace").strip()

    def end(self) -> None:
        """Kill it if it runs, and reap it."""
        if self.code is None:
            self.process.kill()
        self.process.wait()
        for file in (self._result, self._errors):
            if file is not None:
                file.close()


def _is_suspended(process: int) -> bool:
    """Whether a child of this process is stopped by a signal; False where the system cannot say."""
    try:
        state = os.waitid(os.P_PID, process, os.WSTOPPED | os.WCONTINUED | os.WNOHANG | os.WNOWAIT)
    except (AttributeError, ChildProcessError):
        return False
    return state is not None and state.si_code == os.CLD_STOPPED


class RankProcesses:
    """All ranks of this machine; leaving the context ends them."""

    def __init__(self, task: Callable[[], Any], *, size: int) -> None:
        # This process serves the ranks' store, on a port that the system chooses, so that no other process can take it.
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )
        environment = os.environ | {
            LAUNCHED: str(os.getpid()),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
        self.ranks: list[RankProcess] = []
        with tempfile.TemporaryFile() as file:
            pickle.dump(task, file)
            file.flush()
            try:
                for rank in range(size):
                    self.ranks.append(RankProcess(rank, environment, file))
            except BaseException:
                self.end()
                raise

    def __enter__(self) -> "RankProcesses":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Kill those that run, and reap all."""
        is_cut_off = any(rank.code is None or rank.code < 0 for rank in self.ranks[:1])
        for rank in self.ranks:
            rank.end()
        if is_cut_off and sys.stderr.isatty():
            sys.stderr.write(_LEAVE_LIVE_LINE)

    def wait(self, requests: StopRequests) -> list[int | None]:
        """Wait until all ranks have ended, or some seconds after one has failed; pass stop signals on.

        Returns:
            Exit codes; None for ranks that still run.
        """
        passed_on, deadline = False, float("inf")
        while True:
            codes = [rank.code for rank in self.ranks]
            if requests.signal_number is not None and not passed_on:
                passed_on = True
                for rank in self.ranks:
                    rank.process.send_signal(requests.signal_number)
            failed = [code for code in codes if code]
            if failed and deadline == float("inf"):
                stopped = all(code in (Preempted.exit_code, Interrupted.exit_code) for code in failed)
                deadline = time.monotonic() + (_STOP_SECONDS if stopped else _GRACE_SECONDS)
            if None not in codes or time.monotonic() > deadline:
                return codes
            time.sleep(_POLL_SECONDS)
            for rank in self.ranks:
                # Not by the clock, which also runs while the whole job is suspended, as by `scontrol suspend`.
                rank.watch(_POLL_SECONDS)


def launch_ranks(task: Callable[[], Any], *, size: int, requests: StopRequests) -> Any:
    """Run a task in `size` processes of this machine.

    Args:
        task: called in each of them; must be picklable, by reference to a module that can be imported.
        size: number of processes.
        requests: stop signals of this process, which are passed on.

    Returns:
        The result of rank 0.

    Raises:
        Preempted: SIGTERM came, to this process or to a rank.
        Interrupted: the same with SIGINT.
        RetroflowError: a rank raised it, or died; the others were ended.
    """
    with RankProcesses(task, size=size) as processes:
        try:
            codes = processes.wait(requests)
        except KeyboardInterrupt:  # the second Ctrl-C
            raise Interrupted("stopped at once; resume='last' continues from the last checkpoint.") from None
        if any(codes):
            culprit = _culprit(processes.ranks, codes)
            raise _failure(culprit, codes[culprit.rank], size, requests)
        return processes.ranks[0].result().value


def _culprit(ranks: Sequence[RankProcess], codes: Sequence[int | None]) -> RankProcess:
    """The rank whose end made the others fail."""

    def order(rank: RankProcess) -> int:
        code, error = codes[rank.rank], rank.result().error
        if code is None:
            return 3  # unresponsive
        if code < 0:
            return 0  # killed
        if error is None:
            return 2  # crashed
        return 4 if issubclass(error[0], LostRanks) else 1  # lost its peers, or reported an error of its own

    return min((rank for rank in ranks if codes[rank.rank] != 0), key=order)


def _failure(rank: RankProcess, code: int | None, size: int, requests: StopRequests) -> RetroflowError:
    result, signal_number = rank.result(), requests.signal_number
    if result.error is not None:
        kind, message = result.error
        return kind(message if rank.rank == 0 or f"rank {rank.rank} of" in message else f"rank {rank.rank}: {message}")
    if signal_number is not None and code == -signal_number:
        kind = Interrupted if signal_number == signal.SIGINT else Preempted
        return kind("stopped before the first step; resume='last' continues where the run was")
    name = f"rank {rank.rank} of {size} (process {rank.process.pid})"
    if words := "\n".join(part for part in (rank.last_words(), result.crash.strip()) if part):
        say(f"{name} printed before its end:\n{words}")
    return RetroflowError(
        f"{name} {_end_of(rank, code)}; the other ranks were ended too. The same command with "
        "resume='last' continues from the last checkpoint."
    )


def _end_of(rank: RankProcess, code: int | None) -> str:
    if rank.was_suspended:
        return f"was suspended by a signal for {_SUSPENDED_SECONDS:g} s and was ended"
    if code is None:
        return "did not answer within trainer.timeout_seconds and was ended"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}" if code < 0 else f"ended with exit code {code}"
