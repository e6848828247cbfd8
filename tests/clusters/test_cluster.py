"""The contract of a cluster: submitit's local executor, a local cluster of Ray, and SLURM by a stand-in."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from retroflow.cli.main import run
from retroflow.clusters import preparing
from retroflow.clusters.cluster import Cluster, Ended, Job
from retroflow.clusters.options import Shares, open_cluster
from retroflow.distributed.stop_signals import StopRequests
from retroflow.errors import Preempted
from retroflow.version import __version__
from tests.clusters import slurm_stand_in
from tests.pipeline.kill_and_resume import digest
from tests.pipeline.recipes import recipe_file, write_corpus
from tests.waiting import wait_until


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a stand-in for SLURM, whose commands are on PATH."""
    pytest.importorskip("submitit")
    if not Path("/proc/self/stat").exists():
        pytest.skip("the stand-in finds the processes of a job in /proc")
    from retroflow.clusters import slurm as module

    monkeypatch.setattr(module, "RESULT_SECONDS", 0.1)
    folder = tmp_path / "slurm"
    monkeypatch.setenv("PATH", f"{slurm_stand_in.install(folder)}:{os.environ['PATH']}")
    yield folder
    for task in slurm_stand_in.every_task(folder):
        task.end("CANCELLED by 0")


@pytest.fixture(params=["local", "ray", "slurm"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    if request.param == "slurm":
        request.getfixturevalue("slurm")
    pytest.importorskip({"local": "submitit", "slurm": "submitit"}.get(request.param, request.param))
    opened = open_cluster(Shares(request.param, 2), tmp_path)
    yield opened
    opened.close()


def test_jobs_end_with_the_exit_codes_of_their_commands_and_leave_logs(cluster: Cluster, tmp_path: Path) -> None:
    words = {"good": ("--version",), "wrong": ("no-such-command",)}
    jobs = [Job(name, line, tmp_path, tmp_path / f"{name}.log") for name, line in words.items()]
    running = cluster.submit(jobs)
    assert [ended.exit_code for one in running if (ended := wait_until(one.ended))] == [0, 2]
    for one in running:
        one.cancel()  # which does nothing any more
    assert (tmp_path / "good.log").read_text() == f"$ retroflow --version\nretroflow {__version__}\n"
    assert "error: No such command" in (tmp_path / "wrong.log").read_text()


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command line of every process, by its id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(folder.name)] = parent, (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, ValueError):
            continue
    return found


def long_job(folder: Path) -> Job:
    """A job that waits for the one who writes its recipe."""
    os.mkfifo(folder / "pipe.yaml")
    return Job("shard 1/1", ("prepare", "--recipe", str(folder / "pipe.yaml")), folder, folder / "long.log")


def task_that_runs(folder: Path, job: Job) -> slurm_stand_in.Task:
    """The newest job of the stand-in, when its command has begun."""
    wait_until(lambda: commands_of(job))
    return slurm_stand_in.every_task(folder)[-1]


def commands_of(job: Job) -> list[int]:
    """Its processes, but for those of the library."""
    return [one for one, (_, line) in processes().items() if " ".join(job.words) in line]


@pytest.mark.parametrize(
    ("state", "is_warned", "is_cancelled"),
    [("NODE_FAIL", False, False), ("CANCELLED by 1000", False, True), ("CANCELLED by 1000", True, True)],
)
def test_a_job_that_slurm_ends_is_lost_and_one_that_somebody_cancels_is_cancelled(
    slurm: Path, tmp_path: Path, state: str, is_warned: bool, is_cancelled: bool
) -> None:
    job = long_job(tmp_path)
    (running,) = open_cluster(Shares("slurm", 1), tmp_path / "logs").submit([job])
    task_that_runs(slurm, job).end(state, warned=is_warned)
    assert wait_until(running.ended) == Ended(None, state, is_cancelled)
    wait_until(lambda: not commands_of(job))


def test_a_job_whose_time_is_over_says_so_and_ends_with_its_command(slurm: Path, tmp_path: Path) -> None:
    job = long_job(tmp_path)
    options = {"timeout_min": 5, "cpus_per_task": 2, "partition": "cpu", "setup": ["export FROM_SETUP=1"]}
    (running,) = open_cluster(Shares("slurm", 1, options=options), tmp_path / "logs").submit([job])
    task = task_that_runs(slurm, job)
    assert "--cpus-per-task=2" in next((tmp_path / "logs").rglob("*submission.sh")).read_text().split("srun", 1)[1]
    task.signal(signal.SIGUSR2)  # as SLURM does some time before the end
    assert wait_until(running.ended).reason == "Job not requeued because: timed-out and not checkpointable."
    wait_until(lambda: not commands_of(job))


def test_what_is_preempted_is_submitted_again_and_what_waits_can_be_cancelled(slurm: Path, tmp_path: Path) -> None:
    job = long_job(tmp_path)
    cluster = open_cluster(Shares("slurm", 2, options={"array_parallelism": 1}), tmp_path / "logs")
    first, second = cluster.submit([job, Job("shard 2/2", job.words, tmp_path, tmp_path / "second.log")])
    wait_until(lambda: commands_of(job))
    begun, waiting = slurm_stand_in.every_task(slurm)[-2:]
    assert waiting.read(".state") == "PENDING" and second.ended() is None
    second.cancel()
    assert waiting.read(".state") == "CANCELLED by 1000" and wait_until(second.ended).is_cancelled
    begun.write(".state", "PREEMPTED")
    assert wait_until(first.ended) == Ended(None, "PREEMPTED")
    wait_until(lambda: not commands_of(job))
    assert not (tmp_path / "second.log").exists()


def test_a_signal_to_the_command_cancels_its_jobs(slurm: Path, tmp_path: Path) -> None:
    job = long_job(tmp_path)
    cluster = open_cluster(Shares("slurm", 1), tmp_path / "logs")

    def stop() -> None:
        wait_until(lambda: commands_of(job))
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=stop, daemon=True).start()
    with pytest.raises(Preempted, match="stopped"), StopRequests() as requests, requests.at_once("stopped"):
        preparing._run(cluster, [job], 2, (0,))
    wait_until(lambda: not commands_of(job))
    assert slurm_stand_in.every_task(slurm)[-1].read(".end") == "CANCELLED by 1000"


def test_what_sbatch_refuses_is_one_line(slurm: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = recipe_file(tmp_path)
    command = ["prepare", "--recipe", str(file), "--on", "slurm", "--shares", "2", "--on-option", "partition=gpus"]
    assert run(command) == 2
    said = capfd.readouterr().err
    assert said.splitlines()[-1] == (
        "error: --on slurm: sbatch refuses the job: invalid partition specified: gpus; Batch job submission failed: "
        "Invalid partition name specified. Change --on-option KEY=VALUE, or give fewer --shares."
    )
    assert said.count("Batch job submission failed") == 1
    (slurm / "bin" / "sacct").write_text("#!/bin/sh\necho Slurm accounting storage is disabled >&2; exit 1\n")
    assert run(command) == 2
    assert "sacct does not answer (Slurm accounting storage is disabled), so a job that" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("on", ["local", "ray", "slurm"])
def test_two_processes_killed_half_way_and_a_second_call_end_with_the_same_bytes(
    tmp_path: Path, on: str, request: pytest.FixtureRequest
) -> None:
    slurm = request.getfixturevalue("slurm") if on == "slurm" else None
    pytest.importorskip({"local": "submitit", "slurm": "submitit"}.get(on, on))
    write_corpus(tmp_path / "corpus.jsonl", 400)
    file, artifacts = recipe_file(tmp_path), tmp_path / "artifacts"
    command = [sys.executable, "-m", "retroflow", "prepare", "--recipe", str(file)]
    alone = [*command, f"data.artifacts_folder={tmp_path / 'alone'}"]  # blocks as large as those of the jobs
    subprocess.run(alone, check=True, timeout=300)
    command += ["--on", on, "--shares", "2"]

    def shard(number: int) -> int | None:
        found = (one for one, (_, line) in processes().items() if f"--shard {number}/2" in line and str(file) in line)
        return next(found, None)

    driver = subprocess.Popen(command)
    try:
        wait_until(lambda: list(artifacts.glob("embeddings-*.partial")))
        process = wait_until(lambda: shard(2))
        if slurm:
            slurm_stand_in.every_task(slurm)[-1].signal(signal.SIGUSR2)  # preempted: SLURM puts it back into its queue
        else:
            os.kill(process, signal.SIGKILL)  # one job: it is submitted again
        wait_until(lambda: list(artifacts.glob("neighbours-*.partial")))
    finally:
        tree, every = {driver.pid}, processes()  # the whole cluster, with the command
        for _ in range(6):
            tree |= {one for one, (parent, _) in every.items() if parent in tree}
        for one in tree:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    for task in slurm_stand_in.every_task(slurm) if slurm else []:
        task.end("NODE_FAIL")
    assert not list(artifacts.glob("neighbours-????????????????"))
    assert subprocess.run(command, timeout=300).returncode == 0
    assert digest(artifacts) == digest(tmp_path / "alone")
