"""The contract of a cluster, on real ones: submitit's local executor and a local cluster of Ray."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from retroflow.clusters.cluster import Cluster, Job
from retroflow.clusters.options import Shares, open_cluster
from retroflow.version import __version__
from tests.pipeline.kill_and_resume import digest
from tests.pipeline.recipes import recipe_file, write_corpus
from tests.waiting import wait_until


@pytest.fixture(params=["local", "ray"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Cluster:
    pytest.importorskip({"local": "submitit"}.get(request.param, request.param))
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


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("on", ["local", "ray"])
def test_two_processes_killed_half_way_and_a_second_call_end_with_the_same_bytes(tmp_path: Path, on: str) -> None:
    pytest.importorskip({"local": "submitit"}.get(on, on))
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
        os.kill(wait_until(lambda: shard(2)), signal.SIGKILL)  # one job: it is submitted again
        wait_until(lambda: list(artifacts.glob("neighbours-*.partial")))
    finally:
        tree, every = {driver.pid}, processes()  # the whole cluster, with the command
        for _ in range(6):
            tree |= {one for one, (parent, _) in every.items() if parent in tree}
        for one in tree:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert not list(artifacts.glob("neighbours-????????????????"))
    assert subprocess.run(command, timeout=300).returncode == 0
    assert digest(artifacts) == digest(tmp_path / "alone")
