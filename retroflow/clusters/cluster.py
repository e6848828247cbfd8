"""A cluster runs jobs: the contract that `preparing.py` needs, and what a job does where it runs.

Importing this file loads nothing but the standard library, because every job imports it.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# The command ends with the job: a shard that outlives a cancelled job would hold locks.
_PROGRAM = """\
import sys
from retroflow.distributed.parent_death import end_with_parent
end_with_parent(int(sys.argv.pop(1)))
from retroflow.cli.main import main
main()
"""


@dataclass(frozen=True)
class Job:
    """A command of retroflow that runs somewhere else, on the same file system.

    Attributes:
        name: in messages, such as "shard 3/8".
        words: of the command line, after "retroflow".
        folder: the working folder.
        log: file to which its output is appended.
    """

    name: str
    words: tuple[str, ...]
    folder: Path
    log: Path


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        exit_code: of its command; None if the cluster lost it (a killed process, a broken machine, a time limit).
        reason: why it was lost.
        is_cancelled: somebody else cancelled it, and does not want it to run again.
    """

    exit_code: int | None
    reason: str = ""
    is_cancelled: bool = False


class Running(Protocol):
    """A job that was submitted."""

    def ended(self) -> Ended | None:
        """Return how it ended; None while it waits or runs. Returns at once."""
        ...

    def cancel(self) -> None:
        """Stop it, whether it runs or waits; does nothing if it has ended."""
        ...


class Cluster(Protocol):
    """Runs jobs.

    Attributes:
        name: in messages, as in `--on`.
    """

    name: str

    def submit(self, jobs: Sequence[Job]) -> list[Running]:
        """Submit jobs, in any number; they run when the cluster has room, in any order.

        Raises:
            UsageError: the cluster refuses them.
        """
        ...

    def close(self) -> None:
        """Leave the cluster; jobs have ended or are cancelled."""
        ...


def run_job(job: Job) -> int:
    """Run a job's command in a child process and return its exit code; called where the job runs."""
    command = [sys.executable, "-c", _PROGRAM, str(os.getpid()), *job.words]
    with job.log.open("ab") as log:
        log.write(f"$ retroflow {shlex.join(job.words)}\n".encode())
        log.flush()
        return subprocess.run(
            command, cwd=job.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False
        ).returncode
