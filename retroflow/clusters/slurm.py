"""Jobs on SLURM, or as processes of this machine, by submitit; the only file that imports submitit."""

import contextlib
import io
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit

from retroflow.clusters.cluster import Ended, Job, Running, run_job
from retroflow.clusters.options import check_keys
from retroflow.console import say
from retroflow.errors import UsageError, words_of

SHARED_OPTIONS = ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb")
SLURM_OPTIONS = (
    "partition", "account", "qos", "constraint", "gres", "nodelist", "exclude", "exclusive", "array_parallelism",
    "additional_parameters", "setup",
)  # fmt: skip
LOCAL_OPTIONS = ("timeout_min", "gpus_per_node")
DAY_MINUTES, YEAR_MINUTES = 24 * 60, 366 * 24 * 60
RESULT_SECONDS = 15.0
"""After the end of a job, until its result must be seen; a network file system may show it late."""

_TRACE_LINE = "-" * 22  # around the traceback in submitit's messages


class SubmititCluster:
    """A `retroflow.clusters.cluster.Cluster` of submitit.

    Args:
        name: "slurm" or "local", whose jobs are processes of this machine, all at the same time.
        options: of a job: submitit's own by their names, and sbatch's without submitit's prefix "slurm_".
        folder: for submitit's files.

    Raises:
        UsageError: an option that there is not, or a machine without SLURM.
    """

    def __init__(self, name: str, options: Mapping[str, Any], folder: Path) -> None:
        self.name = name
        is_slurm = name == "slurm"
        check_keys(name, options, (*SHARED_OPTIONS, *SLURM_OPTIONS) if is_slurm else LOCAL_OPTIONS)
        if is_slurm and shutil.which("sbatch") is None:
            raise UsageError(
                "--on slurm: sbatch is not on this machine. Run the command where jobs are submitted (a login node), "
                "or use --on local for processes of this machine."
            )
        given = {key if key in SHARED_OPTIONS else f"slurm_{key}": value for key, value in options.items()}
        if is_slurm and "cpus_per_task" in options:  # since SLURM 22.05 srun does not take it from sbatch
            given["slurm_srun_args"] = [f"--cpus-per-task={options['cpus_per_task']}"]
        limits = {"timeout_min": DAY_MINUTES if is_slurm else YEAR_MINUTES}
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "submitit", cluster=name)
            self._executor.update_parameters(name="retroflow", **limits | given)
        except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"--on {name}: submitit refuses the options: {words_of(error)}") from error
        if is_slurm:
            _check_accounting()

    def submit(self, jobs: Sequence[Job]) -> list[Running]:
        """As in `Cluster`: several jobs are one array."""
        try:
            # A job that submits jobs would hand its own limits on, in SLURM_* variables. What sbatch prints is raised.
            with contextlib.redirect_stderr(io.StringIO()), submitit.helpers.clean_env(), self._executor.batch():
                submitted = [self._executor.submit(run_job, job) for job in jobs]
        except submitit.core.utils.FailedJobError as error:
            words = "; ".join(line.strip().removeprefix("sbatch: error: ") for line in words_of(error).splitlines())
            raise UsageError(
                f"--on {self.name}: sbatch refuses the job: {words.rstrip('.')}. Change --on-option KEY=VALUE, or give "
                "fewer --shares."
            ) from error
        return [_Running(job, RESULT_SECONDS if self.name == "slurm" else 0.0) for job in submitted]

    def close(self) -> None:
        """As in `Cluster`."""


def _check_accounting() -> None:
    """Warn where `sacct` does not answer: submitit learns from it alone that a job ended without a result."""
    try:
        asked = subprocess.run(["sacct", "-n", "-X", "-j", "1"], capture_output=True, text=True, check=False)
        problem = asked.stderr.strip() if asked.returncode else ""
    except OSError as error:
        problem = words_of(error)
    if problem:
        say(
            f"--on slurm: sacct does not answer ({problem.splitlines()[-1]}), so a job that SLURM kills is not noticed "
            "and waited for; look at squeue."
        )


class _Running:
    """A job of submitit.

    Args:
        job: the job.
        patience: seconds after its end until its result must be there.
    """

    def __init__(self, job: "submitit.Job[int]", patience: float) -> None:
        self._job, self._patience = job, patience
        self._without_result: float | None = None

    def ended(self) -> Ended | None:
        if not self._job.done():
            if self._job.state != "PREEMPTED":
                return None
            # SLURM may put it back into its queue. Submitting it again is the same, and works where SLURM does not.
            self.cancel()
            return Ended(None, "PREEMPTED")
        if not self._job.paths.result_pickle.exists():
            return self._lost()
        try:
            ended = Ended(self._job.result())
        except Exception as error:  # submitit raises whatever was raised there
            trace = words_of(error).split(_TRACE_LINE)
            ended = Ended(None, trace[len(trace) > 1].strip().splitlines()[-1].rpartition("Error: ")[2])
        return ended if ended.exit_code == 0 else self._cancelled() or ended

    def _lost(self) -> Ended | None:
        """It has ended, and there is no result."""
        now = time.monotonic()
        self._without_result = self._without_result or now
        if now - self._without_result < self._patience:
            return None
        printed = (self._job.stderr() or "").strip().splitlines()
        return self._cancelled() or Ended(None, ": ".join([self._job.state, *printed[-1:]]))

    def _cancelled(self) -> Ended | None:
        state = str(self._job.get_info().get("State", ""))
        return Ended(None, state, is_cancelled=True) if state.startswith("CANCELLED") else None

    def cancel(self) -> None:
        if not self._job.done():
            self._job.cancel(check=False)
