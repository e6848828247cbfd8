"""A RETRO-fit under FSDP, in a group of one: what it computes and writes is what one process computes and writes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule

from retroflow.distributed.stop_signals import StopRequests
from retroflow.errors import RetroflowError, UsageError
from retroflow.planning.model_check import check_model
from retroflow.planning.options import TrainerOptions
from retroflow.pretrained.base_models import fingerprint, load_base
from retroflow.recipe import Recipe
from retroflow.runs.checkpoint_files import checkpoint_path
from retroflow.runs.resuming import ResumePoint
from retroflow.training.fit import train
from retroflow.training.lightning_module import drops_retrieval
from tests.pretrained.bases import make_base
from tests.training.jobs import VOCABULARY
from tests.training.test_retrofit import make_job, run
from tests.training.test_strategies import assert_same

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def base_of(tmp_path):
    def save(family, **changes):
        if family == "gpt2":
            changes = {"resid_pdrop": 0.1} | changes
        make_base(family, vocab_size=VOCABULARY + 3, **changes).save_pretrained(tmp_path / family)
        return tmp_path / family

    return save


def test_drawn_steps_without_retrieval_are_among_those_of_these_tests():
    assert 0 < sum(drops_retrieval(1, step, 0.3) for step in range(12)) < 12


@pytest.mark.parametrize("unfreeze", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3_tied", "gpt_neox"])
def test_it_trains_to_the_bits_of_one_process(tmp_path, base_of, family, unfreeze):
    tied = {"tie_word_embeddings": True} if family.endswith("_tied") else {}
    base = base_of(family.removesuffix("_tied"), **tied)
    start, _ = run(make_job(tmp_path / "one", base, unfreeze=unfreeze, validate_every=6))
    job = make_job(tmp_path / "sharded", base, unfreeze=unfreeze, validate_every=6, strategy="fsdp")
    sharded, _ = run(job)
    assert_same(sharded.run, start.run)
    model = job.module.model
    assert all(isinstance(unit, FSDPModule) for unit in (*model.blocks_to_shard, model))
    embeddings = model.base.get_input_embeddings().weight, model.base.get_output_embeddings().weight
    assert (embeddings[0] is embeddings[1]) == (family == "gpt2" or bool(tied))
    same = [
        torch.equal(parameter.to_local(), before)
        for parameter, before in zip(model.base.parameters(), load_base(str(base)).parameters(), strict=True)
    ]
    assert not any(same) if unfreeze else all(same)
    assert not dist.is_initialized()


def test_the_fingerprint_of_a_frozen_base_is_known_and_that_of_shares_is_refused(tmp_path, base_of):
    base = base_of("gpt2")
    frozen, trained = (
        make_job(tmp_path, base, unfreeze=unfreeze, strategy="fsdp", max_steps=1) for unfreeze in (False, True)
    )
    run(frozen)
    assert torch.equal(frozen.module.model.base_fingerprint, fingerprint(load_base(str(base))))
    run(trained)
    with pytest.raises(
        RetroflowError, match="the fingerprint of a sharded model cannot be computed.*compute it before sharding"
    ):
        _ = trained.module.model.base_fingerprint


@pytest.mark.parametrize("unfreeze", [False, True])
@pytest.mark.parametrize(("before", "after"), [("fsdp", "auto"), ("auto", "fsdp")])
def test_each_goes_on_from_the_checkpoint_of_the_other(tmp_path, base_of, before, after, unfreeze):
    base = base_of("gpt2")
    whole, _ = run(make_job(tmp_path / "whole", base, unfreeze=unfreeze))
    begun, _ = run(make_job(tmp_path / "parts", base, unfreeze=unfreeze, strategy=before))
    checkpoint_path(begun.run.checkpoints, 12).unlink()
    job = make_job(tmp_path / "parts", base, unfreeze=unfreeze, strategy=after)
    with StopRequests() as requests:
        train(job, ResumePoint(begun.run, checkpoint_path(begun.run.checkpoints, 8)), requests)
    assert_same(begun.run, whole.run)


def test_a_checkpoint_is_refused_beside_another_base(tmp_path, base_of):
    start, _ = run(make_job(tmp_path, base_of("gpt2")))
    with torch.no_grad():
        other = make_base("gpt2", vocab_size=VOCABULARY + 3)
        other.transformer.ln_f.bias[3] += 1e-3
    other.save_pretrained(tmp_path / "gpt2")
    job = make_job(tmp_path, tmp_path / "gpt2", strategy="fsdp")
    begin = ResumePoint(start.run, checkpoint_path(start.run.checkpoints, 8))
    with StopRequests() as requests, pytest.raises(UsageError, match=r'model\.base: ".*gpt2" has other weights'):
        train(job, begin, requests)
    assert not dist.is_initialized()


@pytest.mark.parametrize("unfreeze", [False, True])
def test_activation_checkpointing_changes_no_bit(tmp_path, base_of, unfreeze):
    base = base_of("llama")
    options = {"unfreeze": unfreeze, "strategy": "fsdp"}
    plain, _ = run(make_job(tmp_path / "plain", base, **options))
    twice, _ = run(make_job(tmp_path / "twice", base, **options, activation_checkpointing=True))
    assert_same(twice.run, plain.run)


def test_what_a_config_ties_and_the_weights_do_not_stays_two(tmp_path, base_of):
    base = base_of("gpt2")
    weights = load_file(base / "model.safetensors")
    assert "lm_head.weight" not in weights
    weights["lm_head.weight"] = torch.randn(weights["transformer.wte.weight"].shape)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    before = fingerprint(load_base(str(base)))
    one, _ = run(make_job(tmp_path / "one", base, unfreeze=True))
    sharded = make_job(tmp_path / "sharded", base, unfreeze=True, strategy="fsdp")
    assert_same(run(sharded)[0].run, one.run)
    embeddings = sharded.module.model.base.transformer.wte.weight, sharded.module.model.base.lm_head.weight
    assert embeddings[0] is not embeddings[1]
    assert torch.equal(fingerprint(load_base(str(base))), before)


def test_compiling_by_block_is_refused_before_anything_is_prepared(base_of):
    """A compiled layer would leave out the hooks that read neighbours, and nothing would be learned."""
    values = {
        "data": {"chunk_length": 4, "sequence_chunks": 2},
        "model": {"name": "retrofit", "base": str(base_of("gpt2"))},
    }
    recipe, compiled = Recipe(values, {}, Path("tiny.yaml")), TrainerOptions(compile=True)
    for strategy in ("ddp", "fsdp"):
        with pytest.raises(UsageError, match=rf'trainer\.compile: true given; a model "retrofit".*{strategy} compiles'):
            check_model(recipe, compiled, SimpleNamespace(strategy=strategy))
        check_model(recipe, TrainerOptions(), SimpleNamespace(strategy=strategy))
    check_model(recipe, compiled, SimpleNamespace(strategy="single"))
