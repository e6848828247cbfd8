"""Started by torchrun and under SLURM's variables; artifacts that are missing there; one rank's own error."""

import fcntl
import os
import re
import socket
import sys
import termios
import threading
import time
from contextlib import suppress

import pytest

from retroflow.runs.checkpoint_files import list_checkpoints
from retroflow.runs.checkpoints import read_checkpoint
from tests.distributed.runs import LIMIT, TWO, Ended, assert_same, end_all, fit, launch, metrics, prepared_folder

pytestmark = pytest.mark.timeout(900)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")


def test_torchrun_without_artifacts_says_how_to_prepare(tmp_path):
    folder = prepared_folder(tmp_path / "new")
    ended = fit(folder, "data.vocabulary_size=301", "neighbours.k=1", prefix=TORCHRUN)
    assert ended.code != 0 and not ended.leftovers()
    line = "retroflow prepare --recipe tiny.yaml neighbours.k=1 data.vocabulary_size=301"
    assert ended.errors.count(line) == 1, ended.errors
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_torchrun_trains_the_same_run(folder, unbroken):
    from tests.distributed.conftest import EXACT

    ended = fit(folder, "trainer.strategy=ddp", *EXACT, "trainer.runs_folder=torchrun", prefix=TORCHRUN)
    assert ended.code == 0 and not ended.leftovers(), ended.errors
    assert ended.errors.count("parameters,") == 1 and ended.output.count("report: ") == 1
    assert_same(folder, unbroken("ddp"), "torchrun")


@pytest.mark.slow
def test_slurm_trains_the_same_run(folder, unbroken):
    from tests.distributed.conftest import EXACT

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_JOB_ID": "71", "SLURM_JOB_NAME": "train"}
    tasks = []
    for rank in ("0", "1"):
        variables = {**common, "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "MASTER_PORT": str(port)}
        tasks.append(
            launch(folder, "trainer.strategy=fsdp", *EXACT, "trainer.runs_folder=slurm", environment=variables)
        )
    try:
        first, second = (task.finish() for task in tasks)
    finally:
        for task in tasks:
            end_all(task.mark)
    assert (first.code, second.code) == (0, 0), first.errors + second.errors
    assert "report: " in first.output and not second.output and not second.errors
    assert_same(folder, unbroken("fsdp"), "slurm")


@pytest.mark.slow
@pytest.mark.parametrize(("signal", "code"), [("SIGINT", 130), ("SIGTERM", 75)])
def test_a_signal_to_the_launcher_is_its_exit_code(folder, signal, code):
    words = (*TWO["fsdp"], f"trainer.runs_folder=signal-{signal}")
    ended = fit(folder, *words, fault=f"0 step-00000004.ckpt {signal}")
    assert ended.code == code and not ended.leftovers(), ended.errors


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), TWO["ddp"]])
def test_a_terminal_that_is_closed_leaves_a_checkpoint_and_no_process(folder, words):
    runs = f"closed-{len(words)}"
    controller, terminal = os.openpty()
    started = launch(
        folder,
        *words,
        "trainer.max_steps=100000",
        "trainer.checkpoint_every=5",
        f"trainer.runs_folder={runs}",
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    threading.Thread(target=read_until_closed, args=(controller,), daemon=True).start()
    checkpoints = folder / runs / "tiny/0001/checkpoints"
    try:
        deadline = time.monotonic() + LIMIT
        while not list(checkpoints.glob("step-*.ckpt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.close(controller)
        assert started.process.wait(LIMIT) == 75
        assert not Ended(75, "", "", started.mark).leftovers()
    finally:
        end_all(started.mark)
    newest = list_checkpoints(checkpoints)[0]
    read_checkpoint(newest)


def read_until_closed(descriptor):
    """Be the person at the terminal."""
    with suppress(OSError):
        while os.read(descriptor, 1 << 16):
            pass


@pytest.mark.slow
def test_an_error_of_rank_0_is_told_once_as_it_is(folder):
    words = (*TWO["ddp"], "trainer.runs_folder=diverged", "optimizer.learning_rate=1e30", "optimizer.clip_norm=0")
    ended = fit(folder, *words)
    assert ended.code == 1 and not ended.leftovers()
    assert len(re.findall(r"error: The training .* is nan\. .*lower optimizer.learning_rate", ended.errors)) == 1


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_with_the_same_data(folder):
    """FSDP on 2, then FSDP on 1, then one process, then DDP on 2: one stream of tokens and losses."""
    still = ("model.dropout=0.0", "trainer.log_every=1", "trainer.checkpoint_every=2")
    whole, parts = (*still, "trainer.runs_folder=whole"), (*still, "trainer.runs_folder=parts", "--resume")
    assert fit(folder, *whole).code == 0
    stops = [
        ((*TWO["fsdp"], *parts), "0 step-00000004.ckpt SIGTERM"),
        (("trainer.strategy=fsdp", "trainer.devices=1", *parts), "- step-00000006.ckpt SIGTERM"),
        (parts, "- step-00000008.ckpt SIGTERM"),
    ]
    for words, fault in stops:
        ended = fit(folder, *words, fault=fault)
        assert ended.code == 75, ended.errors
    ended = fit(folder, *parts, *TWO["ddp"])
    assert ended.code == 0 and "from step 9" in ended.errors, ended.errors
    first, second = metrics(folder, "whole"), metrics(folder, "parts")
    assert [line.get("train/tokens") for line in first] == [line.get("train/tokens") for line in second]
    for name in ("train/loss", "train/gradient_norm", "validation/loss_on"):
        expected = [line[name] for line in first if name in line]
        assert [line[name] for line in second if name in line] == pytest.approx(expected, abs=1e-5)
