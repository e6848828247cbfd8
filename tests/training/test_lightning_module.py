"""What the loss is divided by, when retrieval is dropped, and that every rank reduces the same gradients."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch

from retroflow.errors import UsageError
from retroflow.model.retro import Retro
from retroflow.planning.outline import outline
from retroflow.training.lightning_module import dropout_seed, drops_retrieval
from tests.training.jobs import tiny_config, tiny_job


def make_module(tmp_path, step=0, **options):
    job = tiny_job(tmp_path, model=tiny_config(dropout=0.0), **options)
    job.module.configure_model()
    job.module._trainer = SimpleNamespace(loggers=(), global_step=step)
    job.module._fabric = None
    return job, job.module


def test_retrieval_is_dropped_for_the_wanted_share_of_steps_and_repeatably():
    dropped = [drops_retrieval(3, step, 0.2) for step in range(2000)]
    assert dropped == [drops_retrieval(3, step, 0.2) for step in range(2000)]
    assert 0.17 < sum(dropped) / 2000 < 0.23
    assert not any(drops_retrieval(3, step, 0.0) for step in range(50))
    assert all(drops_retrieval(3, step, 1.0) for step in range(50))


def test_outline_tells_parameters_of_retrieval_without_building():
    found = outline(tiny_config())
    model = tiny_config().build()
    assert found.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert {name.split(".")[0] for name in found.retrieval} == {"blocks", "encoder"}
    assert all("cca" in name for name in found.retrieval if name.startswith("blocks"))
    assert outline(tiny_config(cca_layers=(), encoder_cross_attention_layers=())).num_retrieval_parameters == 0


def test_activation_checkpointing_needs_blocks_to_recompute(tmp_path, monkeypatch):
    monkeypatch.setattr(Retro, "blocks_to_recompute", [])
    with pytest.raises(UsageError, match=r"^trainer.activation_checkpointing is true, and the model names no blocks"):
        tiny_job(tmp_path, activation_checkpointing=True)


def test_configure_model_may_be_called_again(tmp_path):
    _, module = make_module(tmp_path)
    model = module.model
    module.configure_model()
    assert module.model is model


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_every_parameter_gets_a_gradient_with_and_without_retrieval(tmp_path, share):
    job, module = make_module(tmp_path, retrieval_dropout=share)
    batch = job.splits.training(retrieval=True).assemble([0, 3], 3)
    module.training_step(batch, 0)["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in module.model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    encoder = torch.stack([gradients[name].abs().sum() for name in module.outline.retrieval]).sum()
    assert bool(encoder == 0.0) == (share == 1.0)


def test_a_step_without_retrieval_leaves_its_parameters_as_they_were(tmp_path):
    job, module = make_module(tmp_path, retrieval_dropout=0.0)
    batch = job.splits.training(retrieval=True).assemble([0, 3], 3)
    optimizer = module.configure_optimizers()["optimizer"]

    def step():
        optimizer.zero_grad()
        module.training_step(batch, 0)["loss"].backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        return {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}

    before = step()  # AdamW has a direction to go on in now
    module._options = dataclasses.replace(module._options, retrieval_dropout=1.0)
    after = step()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not moved & module.outline.retrieval


def test_losses_of_parts_add_up_to_the_loss_of_the_whole(tmp_path):
    job, module = make_module(tmp_path, retrieval_dropout=0.0)
    dataset = job.splits.training(retrieval=True)
    whole = module.training_step(dataset.assemble([0, 3], 3), 0)
    parts = [module.training_step(dataset.assemble([start], 3), 0) for start in (0, 3)]
    assert whole["loss"].item() == pytest.approx(sum(part["loss"].item() for part in parts) / 2, rel=1e-6)
    assert int(whole["tokens"]) == sum(int(part["tokens"]) for part in parts)


def test_the_gradient_norm_is_that_before_clipping(tmp_path):
    job, module = make_module(tmp_path)
    batch = job.splits.training(retrieval=True).assemble([0], 3)
    module.training_step(batch, 0)["loss"].backward()
    before = torch.nn.utils.get_total_norm([p.grad for p in module.model.parameters()])
    module._optimizer_options = type(module._optimizer_options)(clip_norm=float(before) / 2)
    module.configure_gradient_clipping(None)
    after = torch.nn.utils.get_total_norm([p.grad for p in module.model.parameters()])
    assert float(module.gradient_norm) == pytest.approx(float(before))
    assert float(after) == pytest.approx(float(before) / 2, rel=1e-4)


def test_the_seed_of_dropout_is_another_one_for_every_seed_batch_and_rank():
    places = list(itertools.product((0, 1, 11), (0, 1, 12), (0, 1, 2)))
    seeds = {place: dropout_seed(*place) for place in places}
    torch.rand(1000)
    assert {place: dropout_seed(*place) for place in reversed(places)} == seeds
    assert len(set(seeds.values())) == len(places)
