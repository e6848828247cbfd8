"""What a step has spoilt is seen before its checkpoint is written, by all ranks alike."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from retroflow.errors import RetroflowError
from retroflow.training.lost_weights import refuse_lost_weights
from tests.training.jobs import tiny_job


def first_weight(model):
    return next(iter(model.parameters())).view(-1)


def look(tmp_path, spoil=None, *, others=(0.0, 0.0), **options):
    """Look at a model that `spoil` has changed; `others` is what the other ranks have found."""
    job = tiny_job(tmp_path, **options)
    job.module.configure_model()
    if spoil is not None:
        with torch.no_grad():
            spoil(job.module.model)
    trainer = SimpleNamespace(
        global_step=7,
        strategy=SimpleNamespace(reduce=lambda found, reduce_op: found + torch.tensor(others)),
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
    )
    before = torch.get_rng_state()
    batch = job.splits.training(retrieval=True).assemble(torch.arange(2).numpy() * 3, 3)
    job.module.model.train()
    refuse_lost_weights(trainer, job.module, batch)
    assert job.module.model.training and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("retrieval", [True, False])
def test_a_sound_model_passes_and_no_random_number_is_drawn(tmp_path, retrieval):
    look(tmp_path, retrieval=retrieval)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda model: first_weight(model)[3].fill_(float("nan")), r"After step 7 weights are not finite \(such as "),
        (lambda model: first_weight(model)[3].fill_(float("inf")), r"After step 7 weights are not finite \(such as "),
        (
            lambda model: setattr(model, "loss", lambda *batch: torch.tensor([1.0, float("nan")])),
            "After step 7 the loss is nan",
        ),
    ],
)
def test_what_is_lost_is_named(tmp_path, spoil, words):
    with pytest.raises(RetroflowError, match=words):
        look(tmp_path, spoil)


@pytest.mark.parametrize("others", [(1.0, 0.0), (0.0, 1.0)])
def test_what_another_rank_has_lost_ends_this_one_too(tmp_path, others):
    with pytest.raises(RetroflowError, match="After step 7 .*no checkpoint of it is written"):
        look(tmp_path, others=others)
