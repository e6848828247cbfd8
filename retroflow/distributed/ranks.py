"""The processes of one training: which of them this one is, and how they decide together.

The environment of the launcher (`launching.py`, torchrun or SLURM) is read here alone. Decisions are sent over a gloo
group on the CPU, so that they wait for no GPU.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from retroflow.errors import RankEnded, RetroflowError

LAUNCHED = "RETROFLOW_LAUNCHED"
"""Environment variable of ranks that `retroflow fit` has started itself."""

_LOST = (
    "gloo",
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "imed out",
    "remote process exit",
)
"""Words in torch's errors about a missing rank; under gloo these are plain RuntimeErrors."""

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
_Value = TypeVar("_Value")


class LostRanks(RetroflowError):
    """Other ranks ended or no longer answer; not an error of this rank."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of a training.

    Attributes:
        rank: from 0 over all machines; only rank 0 writes, prints and tracks.
        world_size: number of processes over all machines.
        local_rank: from 0 on this machine, which is its GPU's number too.
        local_size: processes on each machine.
        launcher: "" for a single process, else "retroflow", "torchrun" or "slurm".
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = ""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def num_nodes(self) -> int:
        return max(1, self.world_size // self.local_size)

    @property
    def main_address(self) -> str:
        """The machine of rank 0; under SLURM the job's first machine."""
        if "MASTER_ADDR" in os.environ or self.launcher != "slurm":
            return os.environ.get("MASTER_ADDR", "127.0.0.1")
        machines = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", "127.0.0.1"))
        first = re.sub(r"\[([^],-]*)[^]]*\]", r"\1", machines)  # "gpu[07-12,15],cpu1" -> "gpu07,cpu1"
        return re.split(r"[ ,]", first)[0]

    @property
    def main_port(self) -> int:
        """The port rank 0 listens on; under SLURM computed from the job's number, which all tasks know."""
        return int(os.environ.get("MASTER_PORT", 15000 + int(os.environ.get("SLURM_JOB_ID", "0")[-4:])))

    def agree(self, decide: Callable[[], _Value]) -> _Value:
        """Let rank 0 decide for all.

        Args:
            decide: called on rank 0 alone; its result must be picklable.

        Raises:
            RankEnded: on the other ranks, with the exit code of the error that rank 0 raises and reports.
        """
        if self.world_size == 1:
            return decide()
        answer: list[Any] = [None]
        failure: BaseException | None = None
        if self.is_first:
            try:
                answer = [(0, decide())]
            except BaseException as error:  # the others wait for an answer in any case
                failure, answer = error, [(getattr(error, "exit_code", 1), None)]
        dist.broadcast_object_list(answer, src=0, group=_control_group())
        if failure is not None:
            raise failure
        exit_code, value = answer[0]
        if exit_code:
            raise RankEnded(exit_code)
        decided: _Value = value
        return decided

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Send each rank's values to all ranks, in the order of ranks; every rank gives equally many."""
        if self.world_size == 1:
            return [[float(value) for value in values]]
        own = torch.tensor(values, dtype=torch.float64)
        everyone = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(everyone, own, group=_control_group())
        return [tensor.tolist() for tensor in everyone]

    def total(self, values: Sequence[float]) -> list[float]:
        """Sum each value over the ranks, always in the same order."""
        return [sum(column) for column in zip(*self.gather(values), strict=True)]

    @contextmanager
    def joined(self, accelerator: str, *, seconds: float) -> Iterator[None]:
        """Make the process group for as long as the context lasts; do nothing if there is one already.

        Args:
            accelerator: "cpu" or "cuda".
            seconds: how long a rank waits for another before it gives up.

        Raises:
            RetroflowError: the others did not come.
            LostRanks: they came, and were lost later.
        """
        if dist.is_initialized():
            yield
            return
        backend = "nccl" if accelerator == "cuda" else "gloo"
        if accelerator == "cuda":
            torch.cuda.set_device(self.local_rank)
        self._meet(backend, timedelta(seconds=seconds))
        try:
            yield
        except BaseException as error:
            # NCCL would wait here for operations that a lost rank never completes; the process ends anyway.
            if backend == "gloo":
                dist.destroy_process_group()
            if self.world_size > 1 and _is_loss(error):
                reason = str(error).split(". ")[0].splitlines()[0]  # general advice of gloo follows
                raise LostRanks(
                    f"rank {self.rank} of {self.world_size} has lost another rank, which ended or did not answer for "
                    f"{seconds:g} s (trainer.timeout_seconds): {reason}. See what that rank printed for the cause. "
                    "The same command with resume='last' continues from the last checkpoint"
                ) from error
            raise
        dist.destroy_process_group()
        _control.clear()

    def _meet(self, backend: str, limit: timedelta) -> None:
        address, port = self.main_address, self.main_port
        try:
            if self.world_size == 1:
                store = dist.HashStore()  # type: ignore[attr-defined]
                dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=limit)
            else:
                os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
                dist.init_process_group(backend, rank=self.rank, world_size=self.world_size, timeout=limit)
            _control[:] = [dist.new_group(backend="gloo", timeout=limit)] if backend == "nccl" else []
        except (dist.DistError, RuntimeError) as error:
            raise RetroflowError(
                f"rank {self.rank} of {self.world_size} did not meet the other ranks at {address}:{port} within "
                f"{limit.total_seconds():.0f} s ({error}); start all of them (under SLURM with srun), and let "
                "MASTER_ADDR and MASTER_PORT name a machine and a free port that all can reach."
            ) from error


def _is_loss(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)


ALONE = Ranks()
"""A process that trains alone."""

_control: list[Any] = []


def _control_group() -> Any:
    """The gloo group for decisions; None, in torch, means the group of all."""
    return _control[0] if _control else None


def ranks_of_this_process(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Read from the environment which process this is.

    Variables of torchrun take precedence over those of SLURM, because torchrun may run under SLURM. Interactive SLURM
    jobs (named "bash" or "interactive") and world size 1 count as not launched.
    """
    if all(name in environment for name in _TORCHRUN):
        world_size = int(environment["WORLD_SIZE"])
        if world_size == 1:
            return Ranks()
        return Ranks(
            rank=int(environment["RANK"]),
            world_size=world_size,
            local_rank=int(environment["LOCAL_RANK"]),
            local_size=int(environment.get("LOCAL_WORLD_SIZE", world_size)),
            launcher="retroflow" if LAUNCHED in environment else "torchrun",
        )
    tasks = int(environment.get("SLURM_NTASKS", 1))
    if tasks > 1 and "SLURM_PROCID" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        local_size = tasks // int(environment.get("SLURM_NNODES", environment.get("SLURM_JOB_NUM_NODES", 1)))
        rank = int(environment["SLURM_PROCID"])
        local_rank = int(environment.get("SLURM_LOCALID", rank % local_size))
        return Ranks(rank, tasks, local_rank, local_size, "slurm")
    return Ranks()
