"""The part of a process in preparing: everything, shard i of n, or joining what shards have made.

docs/preparing.md is the guide.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from retroflow.errors import UsageError

DEFAULT_WAIT = 600.0
MOST_SHARDS = 100_000


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `count`, from 1 to `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def owns(self, number: int) -> bool:
        """Return whether this shard makes block `number` of a stage, counted from 0."""
        return number % self.count == self.number - 1

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> "Shard":
        """Parse "i/n", or "auto" for the variables of torchrun, a SLURM array or srun.

        Raises:
            UsageError: it is neither, i is not in 1 to n, or "auto" finds no such variable.
        """
        if text == "auto":
            return cls._of_environment(environment)
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        shard = cls(int(match[1]), int(match[2])) if match else cls(0, 0)
        if not 1 <= shard.number <= shard.count <= MOST_SHARDS:
            raise UsageError(
                f'--shard is "{text}"; allowed: i/n with 1 <= i <= n <= {MOST_SHARDS}, or auto. Shards count from 1: '
                "three processes are --shard 1/3, --shard 2/3 and --shard 3/3."
            )
        return shard

    @classmethod
    def _of_environment(cls, environment: Mapping[str, str]) -> "Shard":
        def number(name: str) -> int:
            try:
                return int(environment[name])
            except ValueError:
                raise UsageError(
                    f'--shard auto: {name} is "{environment[name]}", not a number. Give --shard i/n.'
                ) from None

        if {"RANK", "WORLD_SIZE"} <= environment.keys():  # torchrun
            return cls.parse(f"{number('RANK') + 1}/{number('WORLD_SIZE')}")
        if {"SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"} <= environment.keys():
            step = number("SLURM_ARRAY_TASK_STEP") if "SLURM_ARRAY_TASK_STEP" in environment else 1
            place = (number("SLURM_ARRAY_TASK_ID") - number("SLURM_ARRAY_TASK_MIN")) // max(1, step)
            return cls.parse(f"{place + 1}/{number('SLURM_ARRAY_TASK_COUNT')}")
        if {"SLURM_PROCID", "SLURM_NTASKS"} <= environment.keys():  # srun
            return cls.parse(f"{number('SLURM_PROCID') + 1}/{number('SLURM_NTASKS')}")
        raise UsageError(
            "--shard auto: neither RANK and WORLD_SIZE (torchrun), nor SLURM_ARRAY_TASK_ID, nor SLURM_PROCID is set. "
            "Give --shard i/n."
        )


@dataclass(frozen=True)
class Sharing:
    """The part of this process in preparing; by default it makes everything.

    Attributes:
        shard: which of every stage's blocks it makes; None for all of them.
        merge: make no block, only join what shards have made.
        wait: seconds that a shard waits without any new block before it stops.
        step: go one step only. A shard makes its blocks of one stage and stops; a merge joins what is complete, makes
            what is not divided, begins the next stage and stops. So nobody waits for anybody, and whoever starts the
            processes says when: a merge, all shards, a merge, all shards ... until a merge finds everything made.
        command: if not empty, this process must make nothing; the command that does, for the error message.
    """

    shard: Shard | None = None
    merge: bool = False
    wait: float = DEFAULT_WAIT
    step: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        """Check the combination."""
        if self.merge and self.shard is not None:
            raise UsageError("--merge and --shard are given, but a merge makes no shard; leave one of them out.")
        if self.step and not self.merge and self.shard is None:
            raise UsageError("--step is given, and neither --shard nor --merge, which it is for; add one of them.")
        if not 0 <= self.wait < float("inf"):
            raise UsageError(f"--wait is {self.wait}; allowed: 0 or more seconds. 0 never waits.")


ALONE = Sharing()
