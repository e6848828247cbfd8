"""Started by torchrun and under SLURM's variables; artifacts that are missing there; one rank's own error."""

import re
import socket
import sys

import pytest

from tests.distributed.runs import TWO, assert_same, end_all, fit, launch, metrics, prepared_folder

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
def test_an_error_of_rank_0_is_told_once_as_it_is(folder):
    words = (*TWO["ddp"], "trainer.runs_folder=diverged", "optimizer.learning_rate=1e30", "optimizer.clip_norm=0")
    ended = fit(folder, *words)
    assert ended.code == 1 and not ended.leftovers()
    assert len(re.findall(r"error: the training .* is nan; .*lower optimizer.learning_rate", ended.errors)) == 1


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
