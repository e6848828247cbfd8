"""The norm is torch's, accelerated or not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from retroflow.model.acceleration import accelerate
from retroflow.model.layers import RMS_EPSILON, RMSNorm


def rms_norm(x, weight):
    """What an accelerated norm with these gains computes."""
    norm = nn.ModuleList([RMSNorm(weight.shape[0])])
    accelerate(norm)
    del norm[0].weight
    norm[0].weight = weight
    return norm[0](x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 5, 7)])
def test_rms_norm_and_its_gradients_are_those_of_torch(dtype, shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    weight = torch.randn(7, dtype=dtype, requires_grad=True)
    ours, theirs = rms_norm(x, weight), F.rms_norm(x, (7,), weight, RMS_EPSILON)
    torch.testing.assert_close(ours, theirs)
    plain = RMSNorm(7).to(dtype)
    plain.weight.data.copy_(weight)
    assert torch.equal(plain(x), theirs)
    towards = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (x, weight), towards), torch.autograd.grad(theirs, (x, weight), towards)
    )


def test_rms_norm_has_a_second_derivative():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(rms_norm, (x, weight))
    assert gradgradcheck(rms_norm, (x, weight))


def test_rms_norm_of_nothing_is_nothing():
    x = torch.zeros(2, 4, requires_grad=True)
    out = rms_norm(x, torch.ones(4))
    assert torch.equal(out, torch.zeros(2, 4))
    out.sum().backward()
    assert torch.isfinite(x.grad).all()
