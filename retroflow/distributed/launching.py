"""Start the ranks of this machine, watch over them, and end them together.

An own small launcher beside torchrun and SLURM, because Lightning's makes rank 0 its own supervisor: nobody notices
when that one dies (docs/decisions/0022-strategies.md). This process computes nothing while ranks run. They are told
what to do by unnamed files that they inherit, so that nothing is left behind however they end.
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
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch.distributed as dist

from retroflow.console import DESCRIPTOR_OF_RESULTS, say
from retroflow.distributed.ranks import LAUNCHED, LostRanks
from retroflow.distributed.stop_signals import StopRequests
from retroflow.errors import Interrupted, Preempted, RetroflowError
from retroflow.pipeline.prepare import Prepared
from retroflow.recipe import Recipe

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 3.0
"""How long ranks may go on after one of them failed, to end by themselves and to say why."""

_STOP_SECONDS = 30.0
"""The same after one that ended because it was asked to stop."""

_SUSPENDED_SECONDS = 30.0
"""How long a rank may be suspended (SIGSTOP) while this process is not, before it counts as dead."""

_LAST_WORDS = 4000

_LEAVE_LIVE_LINE = "\n\x1b[?25h"
"""Ends the live line of a rank 0 that was killed, which has hidden the terminal's cursor."""


@dataclass(frozen=True)
class Order:
    """What every rank is told.

    Attributes:
        recipe: the checked recipe.
        resume: as in `fit`.
        prepared: its artifacts, so that ranks open no retriever; None to look for them.
        show: as in `fit`.
        ignore_memory: as in `fit`.
        target: what a rank runs, "module:function", called as `fit` is.
    """

    recipe: Recipe
    resume: Path | None
    prepared: Prepared | None
    show: Callable[[Any], None] | None
    ignore_memory: bool = False
    target: str = "retroflow.training.fit:fit"


@dataclass(frozen=True)
class Outcome:
    """How a rank ended, as it says itself.

    Attributes:
        result: what `fit` returned.
        error: the user's error it raised, as class and message.
        crash: the traceback of anything else.
    """

    result: Any = None
    error: tuple[type[RetroflowError], str] | None = None
    crash: str = ""


class RankProcess:
    """One rank, as its launcher sees it.

    Attributes:
        rank: its number.
        process: it.
        was_suspended: whether it was ended for being suspended.
    """

    def __init__(self, rank: int, environment: dict[str, str], order: IO[bytes]) -> None:
        self.rank = rank
        self.was_suspended = False
        self._suspended_seconds = 0.0
        self._outcome = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes both
        # Rank 0 prints for all; what the others print matters only if one of them fails.
        self._errors = None if rank == 0 else tempfile.TemporaryFile()  # noqa: SIM115
        files = (order.fileno(), self._outcome.fileno())
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
        """Kill it if it has been suspended for long: nobody else would notice, and the others wait for it.

        Args:
            seconds: since the last look.
        """
        is_suspended = self.code is None and _is_suspended(self.process.pid)
        self._suspended_seconds = self._suspended_seconds + seconds if is_suspended else 0.0
        if self._suspended_seconds > _SUSPENDED_SECONDS:
            self.was_suspended = True
            self.process.kill()

    def outcome(self) -> Outcome:
        """What the ended rank left; empty if it was killed, even while it wrote it."""
        self._outcome.seek(0)
        try:
            outcome: Outcome = pickle.load(self._outcome)
        except (EOFError, pickle.UnpicklingError):
            return Outcome()
        return outcome

    def last_words(self) -> str:
        """The end of what it printed."""
        if self._errors is None:
            return ""
        self._errors.seek(0)
        return self._errors.read()[-_LAST_WORDS:].decode(errors="replace").strip()

    def end(self) -> None:
        """Kill it if it runs, and reap it."""
        if self.code is None:
            self.process.kill()
        self.process.wait()
        for file in (self._outcome, self._errors):
            if file is not None:
                file.close()


def _is_suspended(process: int) -> bool:
    """Whether a child of this process is stopped by a signal; False on systems that do not tell."""
    try:
        state = os.waitid(os.P_PID, process, os.WSTOPPED | os.WCONTINUED | os.WNOHANG | os.WNOWAIT)
    except (AttributeError, ChildProcessError):
        return False
    return state is not None and state.si_code == os.CLD_STOPPED


class RankProcesses:
    """All ranks of this machine, ended when it is left."""

    def __init__(self, order: Order, *, size: int) -> None:
        # The store that ranks meet at is served from here, on a port that the system chooses: no other can take it.
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
            pickle.dump(order, file)
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
        """Wait until all ranks have ended, or some time after one has failed; pass stop signals on.

        Returns:
            Exit codes, None for ranks that still ran then.
        """
        told, deadline = False, float("inf")
        while True:
            codes = [rank.code for rank in self.ranks]
            if requests.signal_number is not None and not told:
                told = True
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
                # Not by the clock, which goes on while all of a job is suspended, as by `scontrol suspend`.
                rank.watch(_POLL_SECONDS)


def launch_ranks(order: Order, *, size: int, requests: StopRequests) -> Any:
    """Run `fit` in `size` processes of this machine.

    Returns:
        What it returned on rank 0.

    Raises:
        Preempted: SIGTERM came, to this process or to a rank.
        Interrupted: the same with SIGINT.
        RetroflowError: a rank raised it, or died, which ends the others.
    """
    with RankProcesses(order, size=size) as processes:
        try:
            codes = processes.wait(requests)
        except KeyboardInterrupt:  # the second Ctrl-C
            raise Interrupted("stopped at once; --resume continues from the last checkpoint") from None
        if any(codes):
            culprit = _culprit(processes.ranks, codes)
            raise _failure(culprit, codes[culprit.rank], size, requests)
        return processes.ranks[0].outcome().result


def _culprit(ranks: Sequence[RankProcess], codes: Sequence[int | None]) -> RankProcess:
    """The rank whose end made the others fail.

    One that was killed, else one that knows why, else one that crashed, else one that the others have waited for in
    vain, else the first.
    """
    failed = [rank for rank in ranks if codes[rank.rank]]
    killed = [rank for rank in failed if (codes[rank.rank] or 0) < 0]
    told = [rank for rank in failed if rank.outcome().error is not None]
    bereaved = [rank for rank in told if _has_lost_others(rank)]
    knowing = [rank for rank in told if rank not in bereaved]
    crashed = [rank for rank in failed if rank not in told]
    silent = [rank for rank in ranks if codes[rank.rank] is None]
    return [*killed, *knowing, *crashed, *silent, *failed][0]


def _has_lost_others(rank: RankProcess) -> bool:
    error = rank.outcome().error
    return error is not None and issubclass(error[0], LostRanks)


def _failure(rank: RankProcess, code: int | None, size: int, requests: StopRequests) -> RetroflowError:
    outcome, signal_number = rank.outcome(), requests.signal_number
    if outcome.error is not None:
        kind, message = outcome.error
        return kind(message if rank.rank == 0 or f"rank {rank.rank} of" in message else f"rank {rank.rank}: {message}")
    if signal_number is not None and code == -signal_number:
        kind = Interrupted if signal_number == signal.SIGINT else Preempted
        return kind("stopped before the first step; --resume continues where the run was")
    name = f"rank {rank.rank} of {size} (process {rank.process.pid})"
    if words := "\n".join(part for part in (rank.last_words(), outcome.crash.strip()) if part):
        say(f"{name} printed before its end:\n{words}")
    return RetroflowError(
        f"{name} {_end_of(rank, code)}; the other ranks were ended too. The same command with --resume continues from "
        "the last checkpoint"
    )


def _end_of(rank: RankProcess, code: int | None) -> str:
    if rank.was_suspended:
        return f"was suspended by a signal for {_SUSPENDED_SECONDS:g} s and was ended"
    if code is None:
        return "did not answer the others (trainer.timeout_seconds) and was ended"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}" if code < 0 else f"ended with exit code {code}"
