"""The loss is torch's cross-entropy, in parts or whole, and its logits are computed no more often than it says."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from retroflow.model import loss as module
from retroflow.model.loss import IGNORED, token_losses

NUM_TOKENS, VOCABULARY, WIDTH = 37, 97, 16


def inputs(dtype=torch.float32):
    torch.manual_seed(0)
    hidden = torch.randn(NUM_TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    output = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (NUM_TOKENS,))
    targets[3] = targets[-1] = IGNORED
    return hidden, output, targets


def plain(hidden, output, targets):
    logits = F.linear(hidden, output)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")


@pytest.fixture(params=[None, 10, 1], ids=["whole", "ten at once", "one at once"])
def tokens_at_once(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", request.param * VOCABULARY)
    monkeypatch.setattr(module, "_SOFTMAX_IN_CACHE", 3 * VOCABULARY)
    return request.param or NUM_TOKENS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_those_of_cross_entropy(dtype, tokens_at_once):
    hidden, output, targets = inputs(dtype)
    ours, theirs = token_losses(hidden, output, targets), plain(hidden, output, targets)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs)
    towards = torch.rand_like(ours)  # some losses count more than others
    expected = torch.autograd.grad(theirs, (hidden, output), towards)
    # Gradients of parts are summed in bfloat16, as autograd sums them.
    close = {"rtol": 0.02, "atol": 0.05} if dtype == torch.bfloat16 else {}
    for _ in range(2):  # a graph that is kept (retain_graph) gives the same again
        gradients = torch.autograd.grad(ours, (hidden, output), towards, retain_graph=True)
        torch.testing.assert_close(gradients, expected, **close)


def test_under_autocast_products_are_bfloat16_and_losses_float32(tokens_at_once):
    hidden, output, targets = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = token_losses(hidden, output, targets), plain(hidden, output, targets)
    torch.testing.assert_close(ours, theirs)
    ours.sum().backward()
    assert hidden.grad.dtype == output.grad.dtype == torch.float32
    expected = torch.autograd.grad(theirs.sum(), (hidden, output))
    torch.testing.assert_close((hidden.grad, output.grad), expected, rtol=2e-2, atol=2e-2)


def test_a_target_outside_the_vocabulary_is_refused():
    hidden, output, targets = inputs()
    for wrong in (-1, VOCABULARY):
        targets[5] = wrong
        with pytest.raises(RuntimeError, match="out of bounds"):
            token_losses(hidden, output, targets)


def test_a_backward_pass_under_autocast_gives_the_same(tokens_at_once):
    hidden, output, targets = inputs()
    losses = token_losses(hidden, output, targets)
    with torch.autocast("cpu", torch.bfloat16):
        gradients = torch.autograd.grad(losses.sum(), (hidden, output))
    expected = torch.autograd.grad(plain(hidden, output, targets).sum(), (hidden, output))
    torch.testing.assert_close(gradients, expected, rtol=0.05, atol=0.2)


def test_a_token_without_a_target_has_no_loss_even_where_its_loss_is_not_finite():
    hidden, output, targets = inputs()
    with torch.no_grad():
        hidden[3] = float("inf")
    losses = token_losses(hidden, output, targets)
    assert losses[3] == 0 and torch.isfinite(losses).all()


def test_it_has_a_second_derivative():
    torch.manual_seed(0)
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    output = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([1, IGNORED, 4, 0])
    assert gradcheck(lambda h, o: token_losses(h, o, targets), (hidden, output))
    assert gradgradcheck(lambda h, o: token_losses(h, o, targets), (hidden, output))


def test_logits_are_computed_again_only_where_they_are_too_many_to_keep(tokens_at_once):
    product = 2 * NUM_TOKENS * WIDTH * VOCABULARY
    with FlopCounterMode(display=False) as counter:
        token_losses(*inputs()).sum().backward()
    assert counter.get_total_flops() == (3 if tokens_at_once == NUM_TOKENS else 4) * product


def test_a_frozen_output_matrix_costs_no_gradient():
    hidden, output, targets = inputs()
    output.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        token_losses(hidden, output, targets).sum().backward()
    assert counter.get_total_flops() == 2 * (2 * NUM_TOKENS * WIDTH * VOCABULARY)
    torch.testing.assert_close(hidden.grad, torch.autograd.grad(plain(hidden, output, targets).sum(), hidden)[0])
