"""The guarantees of a Retro, proved on random small models in float64."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from torch.nn.attention import SDPBackend, sdpa_kernel

from retroflow.model.config import RetroConfig
from retroflow.model.windows import num_windows
from tests.model.random_models import SMALL, VARIANTS, cases, changed, configurations, inputs, make, settings_for
from tests.model.reference import Reference


@settings_for(60)
@given(case=cases())
def test_every_prefix_of_every_random_case_gives_the_same_logits(case):
    whole, first = case.whole(), int((~case.real).sum(1).max()) + 1  # a row needs a token that is not padding
    for length in range(first, case.tokens.shape[1] + 1):
        windows = num_windows(length, case.chunk_length, case.step)
        part = {
            "tokens": case.tokens[:, :length],
            "retrieved": case.retrieved[:, :windows],
            "mask": case.mask[:, :windows],
        }
        for logits in (case.whole(**part), case.cached([length], **part)):
            real = case.real[:, :length]
            torch.testing.assert_close(logits[real], whole[:, :length][real], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_prefix_gives_the_same_logits(variant):
    model = make(**VARIANTS[variant])
    m = model.config.chunk_length
    tokens, retrieved, mask = inputs(model)
    with torch.no_grad():
        whole = model(tokens, retrieved, mask)
        for length in range(1, tokens.shape[1] + 1):
            chunks = length // m
            part = model(tokens[:, :length], retrieved[:, :chunks], mask[:, :chunks])
            torch.testing.assert_close(part, whole[:, :length], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_order_of_neighbours_does_not_matter_but_order_inside_one_does(variant):
    model = make(**VARIANTS[variant])
    tokens, retrieved, mask = inputs(model, neighbours=3)
    with torch.no_grad():
        first = model(tokens, retrieved, mask)
        swapped = model(tokens, retrieved.flip(2), mask.flip(2))
        reversed_inside = model(tokens, retrieved.flip(3), mask.flip(3))
    torch.testing.assert_close(first, swapped, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(first, reversed_inside, rtol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_masked_neighbour_equals_an_absent_one(variant):
    model = make(**VARIANTS[variant])
    tokens, retrieved, mask = inputs(model, neighbours=3, hole=0)
    mask[:, :, 2] = False
    with torch.no_grad():
        masked = model(tokens, retrieved, mask)
        absent = model(tokens, retrieved[:, :, :2], mask[:, :, :2])
        by_neighbour = model(tokens, retrieved, mask.any(-1))
        other_padding = retrieved.clone()
        other_padding[:, :, 2] = changed(other_padding[:, :, 2])
        padded_otherwise = model(tokens, other_padding, mask)
    torch.testing.assert_close(masked, absent, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(masked, by_neighbour, rtol=0, atol=0)
    torch.testing.assert_close(masked, padded_otherwise, rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_tokens_of_a_continuation_are_never_read(variant):
    model = make(**VARIANTS[variant])
    m = model.config.chunk_length
    tokens, retrieved, mask = inputs(model, hole=0)
    mask[:, 1, 0, m + 1 :] = False
    other = torch.where(mask, retrieved, changed(retrieved))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, retrieved, mask), model(tokens, other, mask), rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_chunk_without_neighbours_equals_retrieval_off(variant):
    model = make(**VARIANTS[variant])
    tokens, retrieved, mask = inputs(model)
    with torch.no_grad():
        none_found = model(tokens, retrieved, torch.zeros_like(mask))
        off = model(tokens)
        no_neighbours = model(tokens, retrieved[:, :, :0])
    assert torch.isfinite(none_found).all()
    torch.testing.assert_close(none_found, off, rtol=0, atol=0)
    torch.testing.assert_close(no_neighbours, off, rtol=0, atol=0)


def test_gradients_stay_finite_when_nothing_was_retrieved():
    model = make()
    tokens, retrieved, mask = inputs(model)
    model(tokens, retrieved, torch.zeros_like(mask)).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_do_not_influence_each_other(variant):
    model = make(**VARIANTS[variant])
    tokens, retrieved, mask = inputs(model, rows=3)
    with torch.no_grad():
        together = model(tokens, retrieved, mask)
        for row in range(3):
            alone = model(tokens[row : row + 1], retrieved[row : row + 1], mask[row : row + 1])
            torch.testing.assert_close(alone[0], together[row], rtol=1e-10, atol=1e-12)


@settings_for(60)
@given(case=cases(max_chunks=2))
def test_every_random_case_equals_the_literal_reference(case):
    weights = {name: value.detach().numpy() for name, value in case.model.state_dict().items()}
    reference = Reference(weights, case.model.config)
    for row in range(len(case.tokens)):
        padding = 0 if case.padding is None else int(case.padding[row])
        tokens, retrieved, mask = (x[row].tolist() for x in (case.tokens, case.retrieved, case.mask))
        expected = reference.logits(tokens, retrieved, mask, padding=padding, step=case.step)
        for logits in (case.whole(), case.cached()):
            np.testing.assert_allclose(logits[row, padding:].numpy(), expected[padding:], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_literal_reference(variant):
    model = make(seed=3, **VARIANTS[variant])
    tokens, retrieved, mask = inputs(model, seed=3)
    mask[0, 0, 1] = False  # one absent neighbour
    mask[1, 2] = False  # one chunk without any
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    reference = Reference(weights, model.config)
    with torch.no_grad():
        on, off = model(tokens, retrieved, mask), model(tokens)
    for row in range(2):
        expected = reference.logits(tokens[row].tolist(), retrieved[row].tolist(), mask[row].tolist())
        np.testing.assert_allclose(on[row].numpy(), expected, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(off[row].numpy(), reference.logits(tokens[row].tolist()), rtol=1e-8, atol=1e-10)


CHANGES = {
    "vocabulary_size": 31, "chunk_length": 3, "width": 20, "num_layers": 5, "num_heads": 1, "head_width": 4,
    "feed_forward_width": 24, "cca_layers": (4,), "cca_heads": 1, "cca_positions": False, "encoder_width": 8,
    "encoder_layers": 3, "encoder_heads": 1, "encoder_feed_forward_width": 20, "encoder_cross_attention_layers": (2,),
    "tie_embeddings": False, "share_encoder_embeddings": True, "dropout": 0.5, "rotary_theta": 100.0, "smear": True,
    "next_token_values": True, "copy_initialisation": True, "cca_scale": 5.0, "positions": "relative",
    "encoder_head_width": 4, "retrieved_part": "continuation",
}  # fmt: skip


def test_every_option_is_in_the_list_of_changes():
    assert set(CHANGES) == {field.name for field in dataclasses.fields(RetroConfig)}


@settings_for(5)
@given(options=configurations())
def test_random_configurations_draw_every_option(options):
    assert set(options) == {field.name for field in dataclasses.fields(RetroConfig)}


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_changes_parameters_or_output(name):
    before = dataclasses.replace(SMALL, share_encoder_embeddings=name == "copy_initialisation")
    after = dataclasses.replace(before, **{name: CHANGES[name]})

    def outcome(config):
        torch.manual_seed(0)
        model = config.build().double().train()
        torch.manual_seed(1)
        tokens, retrieved, mask = inputs(model, length=12)
        return model(tokens, retrieved, mask), sum(p.numel() for p in model.parameters())

    (first, first_count), (second, second_count) = outcome(before), outcome(after)
    assert first_count != second_count or first.shape != second.shape or not torch.allclose(first, second, rtol=1e-4)


def test_loss_equals_cross_entropy_of_the_logits(monkeypatch):
    model = make()
    tokens, retrieved, mask = inputs(model)
    targets = torch.roll(tokens, -1, dims=1)
    targets[0, 3] = targets[1, 5] = -100
    logits = model(tokens, retrieved, mask)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100
    )
    expected = expected.view_as(targets).sum(-1)
    expected.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    for at_once in (4096, 5):  # tokens: in one part, and in parts that are recomputed in the backward pass
        monkeypatch.setattr("retroflow.model.loss.LOGITS_AT_ONCE", at_once * model.config.vocabulary_size)
        model.zero_grad()
        losses = model.loss(tokens, targets, retrieved, mask)
        losses.sum().backward()
        torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-10)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-10)


def test_a_model_that_has_generated_can_be_trained():
    model = make()
    tokens, retrieved, mask = inputs(model)
    with torch.inference_mode():
        model(tokens, retrieved, mask)
    model(tokens, retrieved, mask).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_model_without_cca_layers_has_no_encoder_and_ignores_neighbours():
    model = make(cca_layers=(), encoder_cross_attention_layers=())
    tokens, retrieved, mask = inputs(model)
    assert not any("encoder" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, retrieved, mask), model(tokens), rtol=0, atol=0)


def test_importing_the_model_needs_torch_alone():
    import subprocess
    import sys

    code = "import sys, retroflow.model.retro; print([n for n in ('lightning', 'transformers', 'faiss', 'omegaconf') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("aids", ["aids", "aids_relative"])
def test_a_missing_token_is_not_even_before_another(aids):
    model = make(**VARIANTS[aids])  # smear lets a token see the one before it
    tokens, retrieved, mask = inputs(model, hole=0.4)
    with torch.no_grad():
        other = torch.where(mask, retrieved, changed(retrieved))
        torch.testing.assert_close(model(tokens, other, mask), model(tokens, retrieved, mask), rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bf16", [False, True])
def test_no_step_touches_the_processor_while_the_model_is_elsewhere(variant, bf16):
    # The meta device refuses to meet tensors of another and to say a value, as a GPU would wait to be asked.
    with torch.device("meta"):
        model = dataclasses.replace(SMALL, **VARIANTS[variant]).build()
    tokens, retrieved, mask = (tensor.to("meta") for tensor in inputs(model, length=17))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model.loss(tokens[:, :-1], tokens[:, 1:], retrieved, mask).sum().backward()
        cache = model.new_cache()
        with torch.no_grad():
            for start in range(0, 17, 4):
                piece = tokens[:, start : start + 4]
                windows = cache.num_new_windows(piece.shape[1])
                model.extend(piece, cache, retrieved[:, :windows], mask[:, :windows])
    assert all(parameter.grad.device.type == "meta" for parameter in model.parameters())


def test_a_compiler_takes_the_model_whole_and_leaves_the_loss():
    model = make().float()
    tokens, retrieved, mask = inputs(model)
    explained = torch._dynamo.explain(model.loss)(tokens[:, :-1], tokens[:, 1:], retrieved, mask)
    where = {reason.user_stack[-1].name for reason in explained.break_reasons}
    assert (explained.graph_count, where) == (3, {"token_losses"})


def test_transforms_and_batched_gradients_see_through_the_model():
    model = make()
    tokens, retrieved, mask = inputs(model, rows=1)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    name = "embedding.weight"

    def loss_of(weight):
        return torch.func.functional_call(model, parameters | {name: weight}, (tokens, retrieved, mask))[0, -1, :3]

    one_by_one = torch.autograd.functional.jacobian(loss_of, parameters[name])
    batched = torch.autograd.functional.jacobian(loss_of, parameters[name], vectorize=True)
    torch.testing.assert_close(batched, one_by_one, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.func.jacrev(loss_of)(parameters[name]), one_by_one, rtol=1e-9, atol=1e-12)
    assert one_by_one.abs().max() > 0


def test_transforms_and_batched_gradients_see_through_the_loss():
    model = make()
    tokens, retrieved, mask = inputs(model)

    def losses(weight):
        arguments = (tokens, torch.roll(tokens, -1, dims=1), retrieved, mask)
        return torch.func.functional_call(Losing(model), {"model.norm.weight": weight}, arguments)

    weight = model.norm.weight.detach()
    one_by_one = torch.autograd.functional.jacobian(losses, weight)
    torch.testing.assert_close(torch.autograd.functional.jacobian(losses, weight, vectorize=True), one_by_one)
    torch.testing.assert_close(torch.func.jacrev(losses)(weight), one_by_one)


@pytest.mark.parametrize("tied", [True, False])
def test_a_gradient_that_is_to_be_differentiated_is_the_same(tied):
    model = make(tie_embeddings=tied)
    tokens, retrieved, mask = inputs(model)

    def gradients(**options):
        losses = model.loss(tokens, torch.roll(tokens, -1, dims=1), retrieved, mask)
        return torch.autograd.grad(losses.sum(), tuple(model.parameters()), **options)

    once, twice = gradients(), gradients(create_graph=True)
    for plain, differentiable in zip(once, twice, strict=True):
        assert differentiable.requires_grad
        torch.testing.assert_close(differentiable, plain, rtol=1e-9, atol=1e-12)
    with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no second derivative
        sum((each**2).sum() for each in gradients(create_graph=True)).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


class Losing(torch.nn.Module):
    """A model whose forward is its loss, for `functional_call`."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *arguments):
        return self.model.loss(*arguments)
