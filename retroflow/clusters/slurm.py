"""Jobs on SLURM, or as processes of this machine, by submitit; the only file that imports submitit."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit

from retroflow.clusters.cluster import Ended, Job, Running, run_job
from retroflow.clusters.options import check_keys
from retroflow.errors import UsageError, words_of

SHARED_OPTIONS = ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb")
SLURM_OPTIONS = (
    "partition", "account", "qos", "constraint", "gres", "nodelist", "exclude", "exclusive", "array_parallelism",
    "additional_parameters", "setup",
)  # fmt: skip
LOCAL_OPTIONS = ("timeout_min", "gpus_per_node")
DAY_MINUTES, YEAR_MINUTES = 24 * 60, 366 * 24 * 60


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
        limits = {"timeout_min": DAY_MINUTES if is_slurm else YEAR_MINUTES}
        given = {key if key in SHARED_OPTIONS else f"slurm_{key}": value for key, value in options.items()}
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "submitit", cluster=name)
            self._executor.update_parameters(name="retroflow", **limits | given)
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise UsageError(f"--on {name}: submitit refuses the options: {words_of(error)}") from error

    def submit(self, jobs: Sequence[Job]) -> list[Running]:
        """As in `Cluster`: several jobs are one array."""
        try:
            # A job that submits jobs would hand its own limits on, in SLURM_* variables.
            with submitit.helpers.clean_env(), self._executor.batch():
                submitted = [self._executor.submit(run_job, job) for job in jobs]
        except submitit.core.utils.FailedJobError as error:
            raise UsageError(
                f"--on {self.name}: sbatch refuses the job: {words_of(error).strip()}. Change --on-option KEY=VALUE."
            ) from error
        return [_Running(job) for job in submitted]

    def close(self) -> None:
        """As in `Cluster`."""


class _Running:
    def __init__(self, job: "submitit.Job[int]") -> None:
        self._job = job

    def ended(self) -> Ended | None:
        if not self._job.done():
            return None
        try:
            return Ended(self._job.result())
        except Exception as error:  # submitit raises whatever was raised there
            return Ended(None, f"{self._job.state}: {words_of(error).strip().splitlines()[0]}")

    def cancel(self) -> None:
        if not self._job.done():
            self._job.cancel(check=False)
