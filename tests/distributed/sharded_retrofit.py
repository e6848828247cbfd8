"""What each of two ranks finds when a RETRO-fit is cut between them, against the whole model beside it."""

from functools import partial

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from retroflow.distributed.ranks import ALONE, Ranks
from retroflow.distributed.sharding import build_sharded
from retroflow.distributed.tied_weights import shared_names
from retroflow.evaluation.measuring import estimate
from retroflow.pretrained.base_models import fingerprint, load_base
from tests.pretrained.bases import make_batch, make_options
from tests.training.jobs import tiny_job


def compare_and_estimate(rank, mesh, bases, folder):
    """Both of what two ranks are started for."""
    compare(rank, mesh, bases)
    estimate_together(rank, folder)


def estimate_together(rank, folder):
    """The losses of a validation estimate do not depend on how many ranks and batches it is divided into."""
    found = []
    # 4 full sequences: 1, 2 and 4 batches, of which a rank has 0 to 2, and a shorter one.
    for size, batches in ((4, 1), (2, 2), (1, 4), (3, 2)):
        job = tiny_job(folder, eval_batch_size=size, validation_batches=batches)
        job.module.configure_model()
        job.module.eval()
        found += [estimate(job, Ranks(rank, 2, rank, 2)), estimate(job, ALONE)]
    for values in found[1:]:
        assert values.keys() == found[0].keys()
        assert all(abs(values[name] - found[0][name]) < 1e-6 for name in values), found


def compare(rank, mesh, bases):
    """Compare for each (folder, unfreeze)."""
    for base, unfreeze in bases:
        torch.manual_seed(3)
        sharded = build_sharded(make_options(base=base, unfreeze=unfreeze).build, mesh, prepare=_checkpoint_layers)
        torch.manual_seed(3)
        whole = make_options(base=base, unfreeze=unfreeze).build()
        _compare_contents(sharded, whole)
        _compare_step_0(sharded, base)
        for model in (sharded, whole):
            _open(model)
        _compare_gradients(sharded, whole, rank)
        if not unfreeze:
            assert torch.equal(sharded.base_fingerprint, fingerprint(load_base(base)))
            assert not any(".base." in name or name.startswith("base.") for name in sharded.state_dict())


def _checkpoint_layers(model):
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _compare_contents(sharded, whole):
    assert shared_names(sharded) == shared_names(whole)
    found = dict(sharded.named_parameters())
    assert list(found) == [name for name, _ in whole.named_parameters()]
    for name, parameter in whole.named_parameters():
        assert torch.equal(found[name].full_tensor(), parameter), name
        assert found[name].requires_grad == parameter.requires_grad, name
        assert parameter.shape[0] == 1 or found[name].to_local().numel() < parameter.numel(), name
    buffers = dict(sharded.named_buffers())  # those that no state dict has, too, such as rotary frequencies
    assert buffers.keys() == dict(whole.named_buffers()).keys()
    assert all(torch.equal(buffers[name], buffer) for name, buffer in whole.named_buffers())


@torch.no_grad()
def _compare_step_0(sharded, base):
    tokens, retrieved, mask = make_batch()
    logits = load_base(base)(tokens).logits
    sharded.eval()
    off = sharded(tokens)
    # Not bit for bit: some kernels round by where weights lie in memory, as an unsharded model shows that is moved there.
    torch.testing.assert_close(off, logits, rtol=0.0, atol=2e-6)
    assert torch.equal(sharded(tokens, retrieved, mask), off)
    sharded.train()


@torch.no_grad()
def _open(model):
    """Leave step 0, where nothing but the output matrices of CCA has a gradient."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if name.startswith("retrieval."):
            drawn = torch.randn(parameter.shape) * 0.3
            if isinstance(parameter, DTensor):
                drawn = distribute_tensor(drawn, parameter.device_mesh, parameter.placements)
            parameter.copy_(drawn)


def _compare_gradients(sharded, whole, rank):
    """A row for each rank; FSDP gives the mean of their gradients."""
    tokens, retrieved, mask = make_batch()
    (whole.loss(tokens, tokens, retrieved, mask).sum() / 2).backward()
    own = slice(rank, rank + 1)
    sharded.loss(tokens[own], tokens[own], retrieved[own], mask[own]).sum().backward()
    gradients = {name: parameter.grad for name, parameter in sharded.named_parameters()}
    trained = 0
    for name, parameter in whole.named_parameters():
        assert (gradients[name] is None) == (parameter.grad is None), name
        if parameter.grad is not None:
            trained += bool(parameter.grad.abs().max() > 0)
            torch.testing.assert_close(gradients[name].full_tensor(), parameter.grad, rtol=1e-4, atol=1e-5, msg=name)
    assert trained > 10
