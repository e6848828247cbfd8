"""A checkpoint is whole or not there, and is verified before it is used."""

import resource
import signal
import stat
import subprocess
import sys
import time

import pytest
import torch

from retroflow.errors import DamagedDataError, RetroflowError, UsageError
from retroflow.runs import checkpoints
from retroflow.runs.checkpoint_files import (
    checkpoint_path,
    checkpoint_step,
    checksum_path,
    list_checkpoints,
    shard_path,
)
from retroflow.runs.checkpoints import (
    discard_after,
    newest_verified,
    open_shards,
    pick_checkpoint,
    read_checkpoint,
    read_head,
    sweep,
    verify_checkpoint,
    write_checkpoint,
    write_shard,
)
from retroflow.training.checkpoint_io import AtomicIO


def write(folder, step, value=1.0):
    path = checkpoint_path(folder, step)
    write_checkpoint({"step": step, "weights": torch.full((1000,), value)}, path)
    return path


PLACE = ("state_dict", "weights")


def write_sharded(folder, step, world_size=2):
    path = checkpoint_path(folder, step)
    pieces = torch.arange(8.0).chunk(world_size)
    own = [shard_path(path, rank, world_size) for rank in range(world_size)]
    digests = {own[rank].name: write_shard({PLACE: pieces[rank]}, own[rank]) for rank in range(world_size)}
    write_checkpoint({"step": step, "state_dict": {"weights": None}}, path, digests)
    return path, own


def flip(path, place=100):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_what_is_written_is_read(tmp_path):
    path = write(tmp_path, 12, 3.0)
    assert checkpoint_step(path) == 12
    for optimizer in (False, True):
        assert read_checkpoint(path, optimizer=optimizer)["weights"].tolist() == [3.0] * 1000
    assert read_head(path)["step"] == 12
    assert {entry.name for entry in tmp_path.iterdir()} == {"step-00000012.ckpt", "step-00000012.ckpt.sha256"}


def test_others_may_read_a_checkpoint_as_the_umask_says(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(write(tmp_path, 1).stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_writing_again_replaces(tmp_path):
    write(tmp_path, 5, 1.0)
    assert read_checkpoint(write(tmp_path, 5, 2.0))["weights"][0] == 2.0


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_flipped_byte_is_found(tmp_path, place):
    path = write(tmp_path, 1)
    flip(path, place)
    with pytest.raises(DamagedDataError, match="do not match") as caught:
        verify_checkpoint(path)
    assert caught.value.exit_code == 3


def test_a_missing_checksum_counts_as_damage(tmp_path):
    path = write(tmp_path, 1)
    checksum_path(path).unlink()
    with pytest.raises(DamagedDataError, match="cannot be read"):
        verify_checkpoint(path)


def test_shards_are_read_as_one(tmp_path):
    path, own = write_sharded(tmp_path, 1)
    assert [shard.name for shard in own] == ["step-00000001.shard-0-of-2", "step-00000001.shard-1-of-2"]
    assert read_checkpoint(path)["state_dict"]["weights"].tolist() == list(range(8))
    assert read_head(path)["state_dict"]["weights"] is None
    subprocess.run(["sha256sum", "--check", "--quiet", checksum_path(path).name], cwd=tmp_path, check=True)


@pytest.mark.parametrize("damage", [flip, lambda shard: shard.unlink()])
def test_a_damaged_shard_is_damage(tmp_path, damage):
    first, _ = write_sharded(tmp_path, 1)
    path, own = write_sharded(tmp_path, 2)
    damage(own[1])
    with pytest.raises(DamagedDataError, match=r"shard-1-of-2.*damaged"):
        verify_checkpoint(path)
    verify_checkpoint(path, rank=1, world_size=2)  # the checkpoint and its shards go round the ranks
    with pytest.raises(DamagedDataError, match="shard-1-of-2"):
        verify_checkpoint(path, rank=0, world_size=2)
    assert newest_verified(tmp_path, say=lambda text: None) == first


def test_checksums_without_a_shard_are_damage(tmp_path):
    path, _ = write_sharded(tmp_path, 1)
    lines = checksum_path(path).read_text().splitlines()
    checksum_path(path).write_text("\n".join(lines[:2]))
    with pytest.raises(DamagedDataError, match="names other shards"):
        open_shards(path, read_head(path))
    checksum_path(path).write_text("\n".join(lines[1:]))
    with pytest.raises(DamagedDataError, match="not in"):
        verify_checkpoint(path)


def test_code_in_a_checkpoint_is_refused(tmp_path):
    path = checkpoint_path(tmp_path, 1)
    write_checkpoint({"object": AtomicIO()}, path)
    with pytest.raises(DamagedDataError, match="not a checkpoint that can be loaded safely"):
        read_checkpoint(path)


def test_the_newest_intact_checkpoint_is_chosen_and_damage_is_said(tmp_path):
    paths = [write(tmp_path, step) for step in (10, 20, 100)]
    flip(paths[2])
    said = []
    assert newest_verified(tmp_path, say=said.append) == paths[1]
    assert len(said) == 1 and "step-00000100" in said[0]


def test_no_intact_checkpoint_is_an_error(tmp_path):
    flip(write(tmp_path, 10))
    with pytest.raises(DamagedDataError, match="none of the 1 checkpoints is intact"):
        newest_verified(tmp_path, say=lambda text: None)
    assert newest_verified(tmp_path / "empty", say=print) is None


def test_a_checkpoint_is_picked_by_age_step_name_or_path_and_never_a_damaged_one(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert pick_checkpoint(folder) is None and pick_checkpoint(tmp_path / "none") is None
    old, middle, new = [write(folder, step) for step in (1, 2, 100)]
    assert pick_checkpoint(folder) == new
    for wanted in ("2", "00000002", "step-00000002.ckpt", str(middle)):
        assert pick_checkpoint(folder, wanted) == middle
    elsewhere = write(tmp_path, 7)
    assert pick_checkpoint(folder, str(elsewhere)) == elsewhere
    with pytest.raises(UsageError, match="checkpoint='3': there is no .*steps: 100, 2, 1"):
        pick_checkpoint(folder, "3")
    flip(new)
    flip(middle)
    with pytest.raises(DamagedDataError, match="step-00000100.*newest of its run; take one before it: checkpoint=1"):
        pick_checkpoint(folder)
    with pytest.raises(DamagedDataError, match="step-00000002"):
        pick_checkpoint(folder, "2")
    flip(old)
    with pytest.raises(DamagedDataError, match="no other one is intact; train again"):
        pick_checkpoint(folder)


@pytest.mark.parametrize(
    "name", ["step-best.ckpt", "step-00000009 copy.ckpt", "step-²²²²²²²²².ckpt", "step-٣٣٣٣٣٣٣٣.ckpt", "step-9.ckpt"]
)
def test_files_under_other_names_are_neither_read_nor_removed(tmp_path, name):
    path = write(tmp_path, 2)
    copies = [tmp_path / name, tmp_path / f"{name}.sha256"]
    for copy in copies:
        copy.write_bytes(path.read_bytes())
    assert list_checkpoints(tmp_path) == [path] and newest_verified(tmp_path, say=print) == path
    assert pick_checkpoint(tmp_path) == path
    sweep(tmp_path, keep=1)
    discard_after(tmp_path, 0)
    assert all(copy.exists() for copy in copies) and not path.exists()
    for pick in (checkpoint_step, lambda copy: pick_checkpoint(tmp_path, str(copy))):
        with pytest.raises(UsageError, match="not the name of a checkpoint, such as step-00000200.ckpt"):
            pick(copies[0])


def test_sweep_keeps_the_newest_and_clears_leftovers(tmp_path):
    for step in (1, 2, 10):
        write(tmp_path, step)
    (tmp_path / "step-00000011.ckpt.0123456789ab.tmp").touch()
    (tmp_path / "step-00000011.ckpt.sha256").touch()
    sweep(tmp_path, keep=2)
    assert sorted(entry.name for entry in tmp_path.glob("*")) == [
        "step-00000002.ckpt",
        "step-00000002.ckpt.sha256",
        "step-00000010.ckpt",
        "step-00000010.ckpt.sha256",
    ]
    discard_after(tmp_path, 2)
    assert [checkpoint_step(path) for path in list_checkpoints(tmp_path)] == [2]


def test_sweep_removes_the_shards_of_no_checkpoint(tmp_path):
    for step in (1, 2):
        write_sharded(tmp_path, step)
    write_shard({PLACE: torch.ones(1)}, shard_path(checkpoint_path(tmp_path, 3), 0, 2))  # killed before the others
    write_shard({PLACE: torch.ones(1)}, shard_path(checkpoint_path(tmp_path, 2), 0, 3))  # other ranks, the same step
    sweep(tmp_path, keep=1)
    assert sorted(path.name.partition(".")[2] for path in tmp_path.iterdir()) == [
        "ckpt",
        "ckpt.sha256",
        "shard-0-of-2",
        "shard-1-of-2",
    ]
    assert read_checkpoint(checkpoint_path(tmp_path, 2))["step"] == 2


def test_a_failed_write_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch):
    write(tmp_path, 1)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RetroflowError, match=r"No space left on device.*trainer.runs_folder"):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert newest_verified(tmp_path, say=print) == checkpoint_path(tmp_path, 1)
    assert not list(tmp_path.glob(".*"))


def test_a_disk_that_is_full_half_way_is_named_as_the_cause(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # bytes of a file, of the 4,000 that are needed
    try:
        with pytest.raises(RetroflowError, match=r"could not be written \(\[Errno 27\] File too large\); free space"):
            write(tmp_path, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_what_is_raised_amid_writing_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    sha256 = checkpoints.hashlib.sha256

    class Interrupted:
        def __init__(self):
            self.digest = sha256()

        def update(self, data):
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(checkpoints.hashlib, "sha256", Interrupted)
    with pytest.raises(RuntimeError, match="^DataLoader worker"):
        write(tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_a_kill_at_any_moment_leaves_an_intact_newest_checkpoint(tmp_path):
    script = f"""
import torch, itertools
from pathlib import Path
from retroflow.runs.checkpoint_files import checkpoint_path
from retroflow.runs.checkpoints import write_checkpoint, sweep
folder = Path({str(tmp_path)!r})
for step in itertools.count(1):
    write_checkpoint({{"step": step, "weights": torch.full((2_000_000,), float(step))}}, checkpoint_path(folder, step))
    sweep(folder, keep=2)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 300
        while not list_checkpoints(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        for _ in range(20):
            process.send_signal(signal.SIGSTOP)  # a stopped process is what a kill at this moment leaves behind
            for path in list_checkpoints(tmp_path):
                assert read_checkpoint(path)["weights"][-1] == checkpoint_step(path)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.013)
    finally:
        process.kill()
        process.wait()
    assert newest_verified(tmp_path, say=print) is not None
    sweep(tmp_path, keep=1)
    assert len(list(tmp_path.iterdir())) == 2
