"""A lean linear layer computes what a plain one does, at the same number of products, and keeps less."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from retroflow.model.layers import FeedForward, RMSNorm, rms_norm
from retroflow.model.lean_linear import lean_linear


def gelu(x):
    return F.gelu(x, approximate="tanh")


def parts(dtype=torch.float32, rows=(3, 5)):
    torch.manual_seed(0)
    linear = nn.Linear(8, 6, bias=False).to(dtype)
    x = torch.randn(*rows, 8, dtype=dtype, requires_grad=True)
    scale = torch.randn(8, dtype=dtype, requires_grad=True)
    return linear, x, scale


def gradients(out, *inputs):
    torch.manual_seed(1)
    return torch.autograd.grad(out, inputs, torch.randn_like(out))


def test_its_derivatives_are_those_of_what_it_computes():
    linear, x, scale = parts(torch.float64, rows=(2, 2))

    def of(x, weight, scale):
        layer = nn.Linear(8, 6, bias=False).double()
        del layer.weight
        layer.weight = weight
        return lean_linear(layer, rms_norm, x, scale)

    assert gradcheck(of, (x, linear.weight, scale))
    assert gradgradcheck(of, (x, linear.weight, scale))


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_it_gives_the_same_bits_as_a_plain_layer(bf16):
    linear, x, scale = parts()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        lean, plain = lean_linear(linear, rms_norm, x, scale), linear(rms_norm(x, scale))
    assert lean.dtype == plain.dtype == (torch.bfloat16 if bf16 else torch.float32)
    assert torch.equal(lean, plain)
    ours, theirs = gradients(lean, x, linear.weight, scale), gradients(plain, x, linear.weight, scale)
    assert all(gradient.dtype == torch.float32 for gradient in ours)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_it_keeps_what_its_input_was_made_of_instead_of_its_input():
    feed_forward, norm = FeedForward(8, 32), RMSNorm(8)
    x = torch.randn(5, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        feed_forward(x, norm)
    weights = [feed_forward.expand.weight, feed_forward.contract.weight, norm.weight]
    others = {t.data_ptr(): t.shape for t in kept} | {t.data_ptr(): None for t in weights}
    # x and the hidden layer before GELU; neither the normalised x nor the hidden layer after GELU.
    assert [shape for shape in others.values() if shape] == [(5, 8), (5, 32)]


def test_it_computes_its_product_once():
    feed_forward, norm = FeedForward(8, 32), RMSNorm(8)
    counts = []
    for forward in (
        lambda x: feed_forward(x, norm),
        lambda x: feed_forward.contract(gelu(feed_forward.expand(norm(x)))),
    ):
        with FlopCounterMode(display=False) as counter:
            forward(torch.randn(5, 8, requires_grad=True)).sum().backward()
        counts.append(counter.get_flop_counts()["Global"][torch.ops.aten.mm])
    assert counts[0] == counts[1] == 3 * 2 * (2 * 5 * 8 * 32)


def test_a_frozen_weight_has_no_gradient_and_costs_none():
    linear, x, scale = parts()
    linear.weight.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        lean_linear(linear, rms_norm, x, scale).sum().backward()
    assert linear.weight.grad is None
    assert counter.get_flop_counts()["Global"][torch.ops.aten.mm] == 2 * (2 * 15 * 8 * 6)
    plain = torch.autograd.grad(linear(rms_norm(x, scale)).sum(), (x, scale))
    torch.testing.assert_close((x.grad, scale.grad), plain)


def test_a_backward_pass_can_be_asked_for_twice():
    linear, x, _ = parts()
    out = lean_linear(linear, gelu, x).sum()
    first = torch.autograd.grad(out, (x, linear.weight), retain_graph=True)
    second = torch.autograd.grad(out, (x, linear.weight))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_layer_that_is_more_than_a_product_is_called_as_it_is():
    linear, x, scale = parts()
    called = []
    linear.register_forward_hook(lambda *_: called.append(True))
    lean_linear(linear, rms_norm, x, scale)
    assert called == [True]
    biased = nn.Linear(8, 6)
    assert torch.equal(lean_linear(biased, rms_norm, x, scale), biased(rms_norm(x, scale)))


def test_autocast_leaves_float64_alone():
    linear, x, scale = parts(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert lean_linear(linear, rms_norm, x, scale).dtype == torch.float64


def test_it_has_a_forward_derivative():
    linear, x, scale = parts(torch.float64, rows=(2, 2))
    assert gradcheck(lambda x: lean_linear(linear, rms_norm, x, scale), (x,), check_forward_ad=True)
