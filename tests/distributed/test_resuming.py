"""Stopped, killed and bereaved runs on two processes end as if nothing had happened, and leave no process behind."""

import re

import pytest

from tests.distributed.conftest import EXACT
from tests.distributed.runs import TWO, assert_same, fit

pytestmark = pytest.mark.timeout(900)  # on a busy machine; a minute on a quiet one


def test_fsdp_killed_in_the_middle_of_a_checkpoint(folder, unbroken):
    words = (*TWO["fsdp"], *EXACT, "trainer.runs_folder=killed")
    ended = fit(folder, *words, fault="0 step-00000008.ckpt kill 0")
    assert ended.code == 1 and not ended.leftovers()
    assert re.search(r"error: rank 0 of 2 \(process \d+\) was killed by SIGKILL.*--resume", ended.errors), ended.errors
    again = fit(folder, *words, "--resume")
    assert again.code == 0, again.errors
    assert "from step 4" in again.errors
    assert_same(folder, unbroken("fsdp"), "killed")
    assert not list((folder / "killed").rglob("*.tmp"))


def test_ddp_stopped_and_orphaned(folder, unbroken):
    words = (*TWO["ddp"], *EXACT, "trainer.runs_folder=stopped", "--resume")
    stopped = fit(folder, *words, fault="0 step-00000004.ckpt SIGTERM")
    assert stopped.code == 75 and not stopped.leftovers()
    assert stopped.errors.count("with a checkpoint; continue with --resume") == 1, stopped.errors
    orphaned = fit(folder, *words, fault="0 step-00000008.ckpt SIGKILL")
    assert orphaned.code == -9 and not orphaned.leftovers()
    again = fit(folder, *words)
    assert again.code == 0, again.errors
    assert_same(folder, unbroken("ddp"), "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_trained_longer_killed_and_resumed(folder, strategy):
    """Killed before the first checkpoint of the longer run, so that it goes on from one of the old schedule."""
    words, longer = (*TWO[strategy], *EXACT), "trainer.max_steps=20"
    for runs, fault, code in (("longer", None, 0), ("longer-killed", "0 step-00000016.ckpt kill 0", 1)):
        folder_of_runs = f"trainer.runs_folder={strategy}-{runs}"
        assert fit(folder, *words, folder_of_runs).code == 0
        ended = fit(folder, "--resume", f"{strategy}-{runs}/tiny/0001", *words, folder_of_runs, longer, fault=fault)
        assert ended.code == code, ended.errors
        assert "a new schedule from step 12: trainer.max_steps is 20 and was 12" in ended.errors
    again = fit(folder, "--resume", *words, f"trainer.runs_folder={strategy}-longer-killed", longer)
    assert again.code == 0 and "from step 12" in again.errors, again.errors
    assert_same(folder, f"{strategy}-longer", f"{strategy}-longer-killed", steps=20)


WRITES = {
    "ddp": (("0", "ckpt.sha256", "before"), ("0", "ckpt", "before"), ("0", "ckpt", "after")),
    "fsdp": (
        ("0", "shard-0-of-2", "before"),
        ("1", "shard-1-of-2", "before"),
        ("1", "shard-1-of-2", "after"),
        ("0", "ckpt.sha256", "before"),
        ("0", "ckpt", "before"),
        ("0", "ckpt", "after"),
    ),
}
"""What is given its name at a checkpoint, and by which rank."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_process_killed_at_every_write_of_every_checkpoint(folder):
    words = (*EXACT, "trainer.runs_folder=one-killed")
    whole = fit(folder, *EXACT, "trainer.runs_folder=one-unbroken")
    assert whole.code == 0, whole.errors
    for step in (4, 8, 12):
        for _, file, when in WRITES["ddp"]:
            ended = fit(folder, *words, "--resume", fault=f"- step-{step:08d}.{file} SIGKILL - {when}")
            assert ended.code == -9 and not ended.leftovers(), ended.errors
    again = fit(folder, *words, "--resume")
    assert again.code == 0, again.errors
    assert_same(folder, "one-unbroken", "one-killed")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("victim", ["0", "1"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_killed_at_every_write_of_every_checkpoint(folder, unbroken, strategy, victim):
    runs = f"{strategy}-{victim}-killed"
    words = (*TWO[strategy], *EXACT, f"trainer.runs_folder={runs}")
    for step in (4, 8, 12):
        for rank, file, when in WRITES[strategy]:
            ended = fit(folder, *words, "--resume", fault=f"{rank} step-{step:08d}.{file} kill {victim} {when}")
            assert ended.code == 1 and not ended.leftovers(), ended.errors
    again = fit(folder, *words, "--resume")
    assert again.code == 0, again.errors
    assert_same(folder, unbroken(strategy), runs)
    assert not list((folder / runs).rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_fsdp_with_a_disk_that_is_full_for_one_rank(folder, unbroken, rank):
    words = (*TWO["fsdp"], *EXACT, f"trainer.runs_folder=full-{rank}", "--resume")
    ended = fit(folder, *words, fault=f"{rank} step-00000008.shard-{rank}-of-2 full")
    assert ended.code == 1 and not ended.leftovers()
    assert f"shard-{rank}-of-2: the checkpoint could not be written" in ended.errors, ended.errors
    assert "No space left on device" in ended.errors and "Traceback" not in ended.errors
    again = fit(folder, *words)
    assert again.code == 0 and "from step 4" in again.errors, again.errors
    assert_same(folder, unbroken("fsdp"), f"full-{rank}")


@pytest.mark.slow
def test_ddp_bereaved_of_another_rank(folder, unbroken):
    words = (*TWO["ddp"], *EXACT, "trainer.runs_folder=bereaved", "--resume")
    bereaved = fit(folder, *words, fault="0 step-00000008.ckpt kill 1")
    assert bereaved.code == 1 and not bereaved.leftovers()
    assert re.search(r"error: rank 1 of 2 \(process \d+\) was killed by SIGKILL", bereaved.errors), bereaved.errors
    again = fit(folder, *words)
    assert again.code == 0, again.errors
    assert_same(folder, unbroken("ddp"), "bereaved")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("suspend 1", r"error: rank 1 of 2 \(process \d+\) was suspended by a signal for 30 s and was ended"),
        ("suspend 0", r"error: rank 0 of 2 \(process \d+\) was suspended by a signal for 30 s and was ended"),
        ("worker", r"error: rank 0 of 2 lost a data worker: .*--resume"),
    ],
)
def test_what_does_not_go_on_is_ended_and_named(folder, action, words):
    name = action.replace(" ", "-")
    ended = fit(folder, *TWO["ddp"], *EXACT, f"trainer.runs_folder={name}", fault=f"0 step-00000004.ckpt {action}")
    assert ended.code == 1 and not ended.leftovers()
    assert re.search(words, ended.errors), ended.errors
