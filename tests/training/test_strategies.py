"""Which processes a recipe asks for, and that FSDP's checkpoints and those of one process are the same thing."""

import json
from collections import Counter

import pytest
import torch
import torch.distributed as dist

from retroflow.distributed.ranks import ALONE, Ranks
from retroflow.distributed.stop_signals import StopRequests
from retroflow.errors import DamagedDataError, UsageError
from retroflow.model.decoder import DecoderBlock
from retroflow.model.encoder import EncoderBlock
from retroflow.planning.options import TrainerOptions
from retroflow.planning.placement import place
from retroflow.runs.checkpoint_files import checkpoint_path, list_checkpoints
from retroflow.runs.checkpoints import read_checkpoint, write_checkpoint
from retroflow.runs.resuming import ResumePoint, choose_start
from retroflow.training import fit as fit_module
from retroflow.training.fit import train
from tests.training.jobs import tiny_config, tiny_job, tiny_recipe

TORCHRUN = Ranks(rank=3, world_size=8, local_rank=1, local_size=2, launcher="torchrun")


def placed(ranks=ALONE, **options):
    return place(TrainerOptions(**({"device": "cpu", "batch_size": 16} | options)), ranks)


@pytest.mark.parametrize(
    ("options", "ranks", "expected"),
    [
        ({}, ALONE, ("single", 1, 1)),
        ({"strategy": "ddp"}, ALONE, ("single", 1, 1)),  # a group of one computes the same
        ({"strategy": "fsdp"}, ALONE, ("fsdp", 1, 1)),
        ({"devices": 2}, ALONE, ("ddp", 2, 1)),
        ({"strategy": "fsdp", "devices": 4}, ALONE, ("fsdp", 4, 1)),
        ({}, TORCHRUN, ("ddp", 2, 4)),
        ({"strategy": "fsdp", "devices": 2, "nodes": 4}, TORCHRUN, ("fsdp", 2, 4)),
    ],
)
def test_placement(options, ranks, expected):
    placement = placed(ranks, **options)
    assert (placement.strategy, placement.devices, placement.nodes) == expected


@pytest.mark.parametrize(
    ("options", "ranks", "message"),
    [
        ({"devices": 3}, ALONE, "cannot be divided over 3 processes x trainer.accumulate 1; make it a multiple of 3"),
        ({"devices": 2, "accumulate": 16}, ALONE, "multiple of 32"),
        ({"nodes": 2}, ALONE, "with torchrun or srun"),
        ({"devices": 4}, TORCHRUN, "trainer.devices is 4, but torchrun has started 2 processes a machine"),
        ({"nodes": 3}, TORCHRUN, "trainer.nodes is 3, but torchrun has started 4 machines; leave trainer.nodes out"),
    ],
)
def test_what_cannot_be_placed_is_refused(options, ranks, message):
    with pytest.raises(UsageError, match=message):
        placed(ranks, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_no_gpu():
    with pytest.raises(UsageError, match="torch finds no CUDA device here; use"):
        placed(device="cuda")


def trained(runs, *, start=None, **options):
    """Train a tiny job; returns the job and where it started."""
    job = tiny_job(runs, **options)
    if start is None:
        start = choose_start(tiny_recipe(), job.identity, runs_folder=job.runs_folder, resume=None, say=print)
    with StopRequests() as requests:
        train(job, start, requests)
    return job, start.run


def metrics(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def assert_same(first, second):
    one, two = (read_checkpoint(list_checkpoints(run.checkpoints)[0]) for run in (first, second))
    assert one["global_step"] == two["global_step"] == 12
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), name
    states, others = one["optimizer_states"][0], two["optimizer_states"][0]
    assert states["param_groups"] == others["param_groups"]
    for parameter, state in states["state"].items():
        for name, value in state.items():
            assert torch.equal(value, others["state"][parameter][name]), (parameter, name)
    assert metrics(first) == metrics(second)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("alone"), validate_every=6)[1]


def test_fsdp_in_a_group_of_one_computes_what_one_process_computes(tmp_path, alone):
    job, run = trained(tmp_path, strategy="fsdp", validate_every=6)
    assert_same(run, alone)
    assert type(next(job.module.model.parameters())).__name__ == "DTensor"
    assert not dist.is_initialized()


@pytest.mark.parametrize(("before", "after"), [("fsdp", "auto"), ("auto", "fsdp")])
def test_each_goes_on_from_the_checkpoint_of_the_other(tmp_path, alone, before, after):
    _, run = trained(tmp_path, strategy=before, validate_every=6)
    checkpoint_path(run.checkpoints, 12).unlink()
    start = ResumePoint(run, checkpoint_path(run.checkpoints, 8))
    trained(tmp_path, start=start, strategy=after, validate_every=6)
    assert_same(run, alone)


def test_fsdp_refuses_a_checkpoint_of_another_model(tmp_path):
    _, run = trained(tmp_path, max_steps=4)
    path = checkpoint_path(run.checkpoints, 4)
    checkpoint = read_checkpoint(path)
    checkpoint["state_dict"]["model.another"] = torch.zeros(1)
    write_checkpoint(checkpoint, path)
    with pytest.raises(DamagedDataError, match="does not fit the model, which differs in model.another"):
        trained(tmp_path, start=ResumePoint(run, path), strategy="fsdp")
    assert not dist.is_initialized()


@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_activation_checkpointing_computes_twice_and_changes_nothing(tmp_path, alone, strategy, monkeypatch):
    calls = Counter()

    def count(kind):
        forward = kind.forward

        def counted(*arguments, **options):
            calls[kind] += torch.is_grad_enabled()
            return forward(*arguments, **options)

        monkeypatch.setattr(kind, "forward", counted)

    count(DecoderBlock)
    count(EncoderBlock)
    _, run = trained(tmp_path, strategy=strategy, activation_checkpointing=True, validate_every=6)
    # In each of 12 steps the first block and the encoder's one are computed twice, and once the block that encodes; the
    # outline passes once over the decoder on "meta". Some steps have their retrieval dropped.
    assert calls[DecoderBlock] == 12 * (2 + 1) + 2
    assert 0 < calls[EncoderBlock] <= 12 * 2 and calls[EncoderBlock] % 2 == 0
    assert_same(run, alone)


def test_fsdp_is_judged_as_a_whole_model(tmp_path, monkeypatch, alone):
    monkeypatch.setattr(fit_module, "make_job", lambda recipe: tiny_job(tmp_path / "runs", strategy="fsdp"))
    sharded = fit_module.fit(tiny_recipe())
    monkeypatch.setattr(fit_module, "make_job", lambda recipe: tiny_job(tmp_path / "runs"))
    assert sharded.report.measures["on"].nats == fit_module.fit(tiny_recipe()).report.measures["on"].nats


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_compiled_it_learns_alike(tmp_path, strategy):
    """The loss as a whole in one process, block by block under a strategy; without dropout, which it draws otherwise."""
    still = {"model": tiny_config(dropout=0.0), "validate_every": 6}
    _, plain = trained(tmp_path / "plain", **still)
    _, run = trained(tmp_path / "compiled", strategy=strategy, compile=True, **still)
    for one, two in zip(metrics(run), metrics(plain), strict=True):
        assert one == pytest.approx(two, abs=1e-4), one["step"]
