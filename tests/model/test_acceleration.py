"""An accelerated model computes what it did before, at the same number of products, and keeps less."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from retroflow.model.acceleration import FEW_KEYS, accelerate
from retroflow.model.attention import Attend
from retroflow.model.decoder import DecoderBlock
from retroflow.model.encoder import RetrievedEncoder
from retroflow.model.layers import FeedForward, RMSNorm
from retroflow.model.neighbours import Retrieved
from tests.model.random_models import SMALL, inputs, make


class Update(nn.Module):
    """Norm, expansion, GELU, contraction: both pairs that are joined."""

    def __init__(self):
        super().__init__()
        self.norm, self.feed_forward = RMSNorm(8), FeedForward(8, 32)

    def forward(self, x):
        return self.feed_forward(self.norm(x))


def pair(dtype=torch.float32, rows=(3, 5)):
    """A plain and an accelerated update with the same weights, and x."""
    torch.manual_seed(0)
    plain = Update().to(dtype)
    nn.init.normal_(plain.norm.weight)
    lean = copy.deepcopy(plain)
    accelerate(lean)
    return plain, lean, torch.randn(*rows, 8, dtype=dtype, requires_grad=True)


def gradients(module, x, **options):
    out = module(x)
    torch.manual_seed(1)
    return out, torch.autograd.grad(out, (x, *module.parameters()), torch.randn_like(out), **options)


def products(module, x):
    with FlopCounterMode(display=False) as counter:
        module(x).sum().backward()
    return counter.get_flop_counts()["Global"][torch.ops.aten.mm]


def test_names_and_values_of_parameters_stay():
    plain, lean, _ = pair()
    ours, theirs = lean.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    copy.deepcopy(lean).load_state_dict(theirs)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_values_and_gradients_are_those_of_the_plain_layers(bf16):
    plain, lean, x = pair()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        (ours, of_ours), (theirs, of_theirs) = gradients(lean, x), gradients(plain, x)
    assert ours.dtype == theirs.dtype == (torch.bfloat16 if bf16 else torch.float32)
    assert all(gradient.dtype == torch.float32 for gradient in of_ours)
    close = {"rtol": 0.02, "atol": 0.02} if bf16 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(ours, theirs, **close)
    torch.testing.assert_close(of_ours, of_theirs, **close)


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_whole_blocks_compute_what_they_did(part):
    torch.manual_seed(0)
    if part == "decoder":
        module = DecoderBlock(SMALL, layer=1).double()
        x = torch.randn(2, 8, SMALL.width, dtype=torch.float64)
        run = lambda module: module(x)[0]  # noqa: E731
    else:
        module, table = RetrievedEncoder(SMALL).double(), nn.Embedding(SMALL.vocabulary_size, SMALL.width).double()
        retrieved = Retrieved(torch.randint(SMALL.vocabulary_size, (2, 2, 2, 2 * SMALL.chunk_length)), None)
        x = torch.randn(2, 8, SMALL.width, dtype=torch.float64)
        run = lambda module: module(retrieved, x, embedding=table).states  # noqa: E731
    lean = copy.deepcopy(module)
    accelerate(lean)
    outs = [run(each) for each in (lean, module)]
    torch.testing.assert_close(*outs)
    ours, theirs = (
        torch.autograd.grad(out.square().sum(), list(each.parameters()), allow_unused=True)
        for out, each in zip(outs, (lean, module), strict=True)
    )
    torch.testing.assert_close(ours, theirs)


def test_all_derivatives_are_right():
    _, lean, x = pair(torch.float64, rows=(2, 2))

    def of(x, *weights):
        return torch.func.functional_call(lean, dict(zip(dict(lean.named_parameters()), weights, strict=True)), (x,))

    arguments = (x, *lean.parameters())
    assert gradcheck(of, arguments)
    assert gradgradcheck(of, arguments)
    assert gradcheck(lean, (x,), check_forward_ad=True)


def test_it_keeps_what_an_input_was_made_of_instead_of_the_input():
    _, lean, _ = pair()
    x = torch.randn(5, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = lean(x)
    weights = {weight.data_ptr() for weight in lean.parameters()}
    held = [t for t in kept if t.data_ptr() not in weights]
    shapes = {t.data_ptr(): tuple(t.shape) for t in held if not is_dead(t, out)}
    # x and the hidden layer before GELU; neither the normalised x nor the hidden layer after GELU.
    assert sorted(shapes.values()) == [(5, 8), (5, 32)]


def is_dead(tensor, out):
    """Whether no node that `out` depends on has saved the tensor."""
    nodes, seen = [out.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        saved = getattr(node, "saved_tensors", ())
        if any(each is not None and each.data_ptr() == tensor.data_ptr() for each in saved):
            return False
        nodes += [after for after, _ in node.next_functions]
    return True


def test_products_are_computed_once():
    plain, lean, x = pair(rows=(5,))
    assert products(lean, x) == products(plain, x) == 3 * 2 * (2 * 5 * 8 * 32)


def test_a_frozen_weight_has_no_gradient_and_costs_none():
    _, lean, x = pair(rows=(5,))
    lean.feed_forward.requires_grad_(False)
    assert products(lean, x) == 2 * 2 * (2 * 5 * 8 * 32)
    assert lean.feed_forward.expand.weight.grad is None and lean.norm.weight.grad is not None


def test_a_backward_pass_can_be_taken_twice():
    _, lean, x = pair()
    out = lean(x).sum()
    inputs_ = (x, *lean.parameters())
    first = torch.autograd.grad(out, inputs_, retain_graph=True)
    second = torch.autograd.grad(out, inputs_)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_layers_that_are_replaced_or_hooked_work_as_ever():
    plain, lean, x = pair()
    for module in (plain, lean):
        torch.manual_seed(2)
        module.feed_forward.expand = nn.Linear(8, 32)  # with a bias, after the acceleration
        module.norm.register_forward_hook(lambda module, args, out: out * 2)
        module.feed_forward.contract.register_forward_hook(lambda module, args, out: out + 1)
    (ours, of_ours), (theirs, of_theirs) = gradients(lean, x), gradients(plain, x)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(of_ours, of_theirs)


def test_autocast_leaves_float64_alone():
    _, lean, x = pair(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert lean(x).dtype == torch.float64


@pytest.mark.parametrize("recomputed", ["chosen", "all"])
def test_activation_checkpointing_changes_nothing(recomputed):
    """The block that encodes, too, may be computed again: what comes of it is a value, and nobody else's state."""
    model = make().train()
    tokens, retrieved, mask = inputs(model)
    plain = torch.autograd.grad(model.loss(tokens, tokens, retrieved, mask).sum(), list(model.parameters()))
    calls = []
    model.encoder.register_forward_pre_hook(lambda *_: calls.append(True))
    for block in model.blocks_to_recompute if recomputed == "chosen" else model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    again = torch.autograd.grad(model.loss(tokens, tokens, retrieved, mask).sum(), list(model.parameters()))
    torch.testing.assert_close(again, plain, rtol=1e-10, atol=1e-12)
    assert len(calls) == (1 if recomputed == "chosen" else 2)


def test_a_result_that_is_changed_in_place_is_not_computed_again_from_before():
    torch.manual_seed(0)
    plain = nn.Sequential(RMSNorm(8), nn.Linear(8, 8, bias=False), nn.GELU(), nn.Linear(8, 8, bias=False))
    fast = copy.deepcopy(plain)
    accelerate(fast)
    x, gradients = torch.randn(3, 8), []
    for layers in (plain, fast):
        for number in (0, 2):
            layers[number].register_forward_hook(lambda layer, inputs, out: out.mul_(3.0))
        gradients.append(torch.autograd.grad(layers(x).square().sum(), list(layers.parameters())))
    torch.testing.assert_close(*gradients)


def attends():
    """Plain attention, and the accelerated one."""
    modules = nn.ModuleList([Attend(), Attend()])
    accelerate(modules[1:])
    return modules[0], modules[1]


def heads(*shape):
    return torch.randn(*shape, dtype=torch.bfloat16, requires_grad=True)


@pytest.mark.parametrize("num_keys", [1, 40, FEW_KEYS, FEW_KEYS + 1])
@pytest.mark.parametrize("mask_rows", [None, 1, 3], ids=["open", "one mask", "masks"])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_attention_in_bfloat16_is_as_exact_as_torch_s(num_keys, mask_rows, scale):
    torch.manual_seed(0)
    query, key, value = heads(3, 2, 9, 8), heads(3, 2, num_keys, 8), heads(3, 2, num_keys, 8)
    mask = None if mask_rows is None else torch.rand(mask_rows, 1, 1, num_keys) > 0.4
    if mask is not None:
        mask[..., 0] = True
    gradient = torch.randn(3, 2, 9, 8, dtype=torch.bfloat16)
    inputs_, plain, fast = (query, key, value), *attends()
    exact = plain(*(each.double() for each in inputs_), mask=mask, scale=scale)
    wanted = (exact, *torch.autograd.grad(exact, inputs_, gradient.double()))
    errors = []
    for attend in (fast, plain):
        out = attend(*inputs_, mask=mask, scale=scale)
        found = (out, *torch.autograd.grad(out, inputs_, gradient))
        errors.append([(a.double() - b.double()).norm() for a, b in zip(found, wanted, strict=True)])
    for ours, theirs, of in zip(*errors, wanted, strict=True):
        assert ours <= 1.1 * theirs + 1e-3 * of.norm()


def test_attention_of_other_layouts_is_torch_s():
    """The kernel that saves normalisers would read memory that is not theirs."""
    query, few, turned = heads(2, 2, 8, 8), heads(1, 2, 8, 8), heads(2, 2, 8, 8).mT
    plain, fast = attends()
    for key in (few, few.expand(2, 2, 8, 8), turned):
        torch.testing.assert_close(fast(query, key, key), plain(query, key, key))


def test_the_backward_pass_of_attention_rounds_no_logits():
    """Two keys whose logits, near 300, differ by less than bfloat16 can tell; the gradient of the weights does."""
    query = torch.tensor([[[[16.0, 1.0]]]], dtype=torch.bfloat16, requires_grad=True)
    key = torch.tensor([[[[18.75, 0.5], [18.75, 0.0]]]], dtype=torch.bfloat16)
    value = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]], dtype=torch.bfloat16, requires_grad=True)
    _, fast = attends()
    out = fast(query, key, value, scale=1.0)
    (found,) = torch.autograd.grad(out, value, torch.tensor([[[[1.0, 1.0]]]], dtype=torch.bfloat16))
    weights = torch.tensor([0.5, 0.0]).softmax(0)
    torch.testing.assert_close(found[0, 0, :, 0].float(), weights, rtol=0, atol=2e-3)


def test_attention_of_few_keys_has_a_second_derivative():
    query, key, value = heads(1, 1, 2, 8), heads(1, 1, 3, 8), heads(1, 1, 3, 8)
    _, fast = attends()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        (first,) = torch.autograd.grad(fast(query, key, value).sum(), query, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), key)
    assert torch.isfinite(second).all() and second.abs().max() > 0
