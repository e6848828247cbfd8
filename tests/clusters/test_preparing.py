"""`prepare --on`: the bytes of the unshared run after any failures, and clear words where a share cannot be made."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from retroflow.api import load_recipe, prepare
from retroflow.cli.main import run
from retroflow.clusters import preparing
from retroflow.clusters.cluster import Ended, Job, Running
from retroflow.clusters.options import Shares
from retroflow.clusters.preparing import prepare_on
from retroflow.errors import RetroflowError
from retroflow.pipeline.prepare import Prepared
from tests.pipeline.kill_and_resume import digest
from tests.pipeline.recipes import recipe_file


class HereAndNow:
    """A cluster that runs a job in this process when it is asked how it ended; `fate` may decide otherwise."""

    name = "here"

    def __init__(self, fate: Callable[[Job], Ended | None]) -> None:
        self.fate, self.ran, self.cancelled, self.is_closed = fate, list[str](), list[str](), False

    def submit(self, jobs: Sequence[Job]) -> list[Running]:
        return [_Here(self, job) for job in jobs]

    def close(self) -> None:
        self.is_closed = True


class _Here:
    def __init__(self, cluster: HereAndNow, job: Job) -> None:
        self.cluster, self.job = cluster, job

    def ended(self) -> Ended | None:
        self.cluster.ran.append(f"{self.job.log.name.split('-')[1]} {self.job.name}")
        fate = self.cluster.fate(self.job)
        if fate is not None:
            return fate
        with self.job.log.open("a") as log, contextlib.redirect_stdout(io.StringIO()) as out:
            with contextlib.redirect_stderr(log):
                code = run(list(self.job.words))
            log.write(out.getvalue())
        return Ended(code)

    def cancel(self) -> None:
        self.cluster.cancelled.append(self.job.name)


class On:
    """Prepares on a cluster whose jobs have a fate; keeps the clusters."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recipe = load_recipe(recipe_file(folder))
        self.clusters: list[HereAndNow] = []
        monkeypatch.setattr(preparing, "open_cluster", lambda shares, folder: self.clusters[-1])
        monkeypatch.setattr(preparing, "FIRST_POLL", 0.0)

    def __call__(
        self, fate: Callable[[Job], Ended | None] = lambda job: None, retries: int = 2
    ) -> tuple[Prepared, HereAndNow]:
        self.clusters.append(HereAndNow(fate))
        made = prepare_on(self.recipe, Shares("local", 3, retries), report=lambda stage: None)
        return made, self.clusters[-1]


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[On]:
    made = On(tmp_path, monkeypatch)
    yield made
    assert all(cluster.is_closed for cluster in made.clusters if cluster.ran)


@pytest.fixture
def expected(tmp_path: Path) -> str:
    prepare(
        load_recipe(recipe_file(tmp_path), f"data.artifacts_folder={tmp_path / 'alone'}"), report=lambda stage: None
    )
    return digest(tmp_path / "alone")


def test_rounds_of_jobs_end_with_the_bytes_of_the_unshared_run(tmp_path: Path, on: On, expected: str) -> None:
    made, cluster = on()
    assert digest(tmp_path / "artifacts") == expected
    shards = ["shard 1/3", "shard 2/3", "shard 3/3"]
    rounds = [f"{number} {name}" for number in (1, 2, 3) for name in ["merge", *shards]]
    assert cluster.ran == [*rounds, "4 merge"] and not cluster.cancelled
    assert [stage.kind for stage in made.stages] == ["chunks", "embeddings", "index", "neighbours"]
    (log,) = (tmp_path / "artifacts" / ".cluster-logs").glob("*/round-3-merge.log")  # Flat
    assert "one process makes it, since its kind is not divided over shards (docs/scale.md)" in log.read_text()
    again, cluster = on()
    assert again.fingerprints == made.fingerprints and not cluster.ran  # nothing is missing: nothing is submitted


def test_what_fails_is_submitted_again(
    tmp_path: Path, on: On, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    left = {"round-1-shard-2-of-3": [Ended(None, "WorkerCrashedError: it died")], "round-2-merge": [Ended(-9)]}
    left["round-3-shard-3-of-3"] = [Ended(1), Ended(75)]
    _, cluster = on(lambda job: left[job.log.stem].pop() if left.get(job.log.stem) else None)
    assert digest(tmp_path / "artifacts") == expected
    assert [cluster.ran.count(name) for name in ("1 shard 2/3", "2 merge", "3 shard 3/3", "3 shard 1/3")] == [
        2,
        2,
        3,
        1,
    ]
    said = capsys.readouterr().err
    assert (
        "submitted again (1 of 2): shard 2/3 was lost (WorkerCrashedError: it died); the last line of its log" in said
    )
    assert "merge was killed by signal 9" in said and "shard 3/3 failed with exit code 75" in said


def test_a_share_that_always_fails_is_named_with_its_log_and_the_others_end(
    tmp_path: Path, on: On, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fate(job: Job) -> Ended | None:
        if job.name != "shard 1/3" or "round-2" not in job.log.name:
            return None
        job.log.write_text("many lines\nerror: no space left\n")
        return Ended(1)

    with pytest.raises(RetroflowError) as caught:
        on(fate, retries=1)
    words = str(caught.value)
    assert words.startswith("shard 1/3 failed with exit code 1; the last line of its log ")
    assert "round-2-shard-1-of-3.log: no space left\n" in words
    assert words.endswith("Mend the cause and run the same command again: finished work is kept.")
    assert "submitted again (1 of 1)" in capsys.readouterr().err
    _, cluster = on()  # the cause is mended
    assert digest(tmp_path / "artifacts") == expected
    assert cluster.ran[0] == "1 merge" and cluster.ran[-1] == "3 merge"  # the first round was not made again


@pytest.mark.parametrize(("code", "tries"), [(2, 1), (4, 1), (3, 3)])
def test_what_no_retry_mends_is_not_tried_again(on: On, code: int, tries: int) -> None:
    with pytest.raises(RetroflowError, match=f"shard 1/3 failed with exit code {code}"):
        on(lambda job: Ended(code) if job.name != "merge" else None)
    # Damage is perhaps that of one block: the other shards go on. A wrong recipe is wrong for all.
    assert len([name for name in on.clusters[0].ran if "shard" in name]) == tries


def test_what_somebody_cancels_is_not_tried_again(on: On) -> None:
    end = Ended(None, "CANCELLED by 1000", is_cancelled=True)
    with pytest.raises(
        RetroflowError, match=r"shard 1/3 was cancelled \(CANCELLED by 1000\); the last line of its log"
    ):
        on(lambda job: end if job.name == "shard 1/3" else None)
    assert on.clusters[0].ran == ["1 merge", "1 shard 1/3", "1 shard 2/3", "1 shard 3/3"]


def test_jobs_that_make_other_artifacts_are_no_reason_to_make_them_here(
    tmp_path: Path, on: On, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "SEEN_SECONDS", 0.0)
    with pytest.raises(RetroflowError, match=r"--on here: .*artifacts/chunks-\w{16} is not there. They made artifacts"):
        on(lambda job: Ended(0))
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == [".cluster-logs"]


def test_an_interrupt_cancels_what_runs(on: On) -> None:
    def fate(job: Job) -> Ended | None:
        if job.name == "shard 2/3":
            raise KeyboardInterrupt
        return None

    with pytest.raises(KeyboardInterrupt):
        on(fate)
    assert on.clusters[0].cancelled == ["shard 2/3", "shard 3/3"]


def test_rounds_that_make_nothing_come_to_an_end(on: On) -> None:
    with pytest.raises(RetroflowError, match="--on here: not complete after 12 rounds.*logs are in"):
        on(lambda job: Ended(75 if job.name == "merge" else 0))
