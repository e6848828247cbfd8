"""The guarantees of a Retro, proved on random small models in float64."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retroflow.errors import InvalidShapeError, RecipeError
from retroflow.model.config import RetroConfig
from retroflow.model.retro import Retro
from tests.model.reference import Reference

VOCABULARY = 29
SMALL = RetroConfig(
    vocabulary_size=VOCABULARY, chunk_length=4, width=16, num_layers=4, num_heads=2, head_width=6, cca_layers=(2, 4),
    encoder_width=12, encoder_layers=2, encoder_heads=2, encoder_cross_attention_layers=(1,),
)  # fmt: skip
READING_AIDS = {"smear": True, "next_token_values": True, "share_encoder_embeddings": True, "copy_initialisation": True, "cca_scale": 5.0}
VARIANTS = {
    "paper": {},
    "aids": READING_AIDS,
    "aids_no_positions_one_head": READING_AIDS | {"cca_positions": False, "cca_heads": 1},
    "no_encoder_layers": {"encoder_layers": 0, "encoder_cross_attention_layers": ()},
    "untied_same_width": {"tie_embeddings": False, "encoder_width": 16, "share_encoder_embeddings": True},
    "single_layer": {"num_layers": 1, "cca_layers": (1,)},
}


def make(seed=0, **changes) -> Retro:
    torch.manual_seed(seed)
    model = dataclasses.replace(SMALL, **changes).build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # larger weights than at the start: every path carries a visible signal
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def inputs(model, *, rows=2, length=14, neighbours=2, seed=0, hole=0.25):
    generator = torch.Generator().manual_seed(seed)
    m = model.config.chunk_length
    tokens = torch.randint(VOCABULARY, (rows, length), generator=generator)
    retrieved = torch.randint(VOCABULARY, (rows, length // m, neighbours, 2 * m), generator=generator)
    mask = torch.rand(retrieved.shape, generator=generator) >= hole
    return tokens, retrieved, mask


def changed(tokens):
    return (tokens + 1) % VOCABULARY


@st.composite
def configurations(draw):
    layers = draw(st.integers(1, 4))
    heads, head_width = draw(st.sampled_from([(1, 4), (2, 4), (2, 6)]))
    width = draw(st.sampled_from([8, 12]))
    encoder_layers = draw(st.integers(0, 2))
    shared = draw(st.booleans())
    return {
        "chunk_length": draw(st.integers(1, 5)),
        "width": width,
        "num_layers": layers,
        "num_heads": heads,
        "head_width": head_width,
        "cca_layers": tuple(sorted(draw(st.sets(st.integers(1, layers), min_size=1)))),
        "cca_positions": draw(st.booleans()),
        "encoder_width": draw(st.sampled_from([8, 12])),
        "encoder_layers": encoder_layers,
        "encoder_heads": draw(st.sampled_from([1, 2])),
        "encoder_cross_attention_layers": tuple(draw(st.sets(st.integers(1, encoder_layers)))) if encoder_layers else (),
        "tie_embeddings": draw(st.booleans()),
        "share_encoder_embeddings": shared,
        "smear": draw(st.booleans()),
        "next_token_values": draw(st.booleans()),
        "copy_initialisation": shared and draw(st.booleans()),
        "cca_scale": draw(st.sampled_from([0.0, 5.0])),
    }


@settings(max_examples=40, deadline=None, derandomize=True)
@given(options=configurations(), seed=st.integers(0, 1000), position=st.floats(0, 0.999))
def test_changing_a_token_changes_no_logit_before_it(options, seed, position):
    model = make(seed, **options)
    tokens, retrieved, mask = inputs(model, length=3 * model.config.chunk_length + 2, seed=seed)
    t = int(position * tokens.shape[1])
    other = tokens.clone()
    other[:, t] = changed(tokens[:, t])
    with torch.no_grad():
        first, second = model(tokens, retrieved, mask), model(other, retrieved, mask)
    assert torch.equal(first[:, :t], second[:, :t])
    assert (first[:, t] != second[:, t]).any(-1).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(options=configurations(), seed=st.integers(0, 1000), chunk=st.integers(0, 2))
def test_neighbours_of_a_chunk_change_nothing_before_the_last_token_of_that_chunk(options, seed, chunk):
    model = make(seed, **options)
    m = model.config.chunk_length
    tokens, retrieved, _ = inputs(model, length=3 * m + 2, seed=seed)
    other = retrieved.clone()
    other[:, chunk] = changed(retrieved[:, chunk])
    with torch.no_grad():
        first, second = model(tokens, retrieved), model(tokens, other)
    start = (chunk + 1) * m - 1
    assert torch.equal(first[:, :start], second[:, :start])
    assert (first[:, start:] != second[:, start:]).any(-1).any(-1).all()
    if options["next_token_values"] is False or m > 1:
        assert (first[:, start] != second[:, start]).any(-1).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_exactly_the_tokens_a_position_may_see(variant):
    model = make(**VARIANTS[variant])
    tokens, retrieved, _ = inputs(model, rows=1, hole=0)
    seen = {}
    model.embedding.register_forward_hook(lambda module, args, out: seen.setdefault("decoder", out).retain_grad())
    for position in range(tokens.shape[1]):
        seen.clear()
        model(tokens, retrieved)[0, position].square().sum().backward()
        reached = seen["decoder"].grad[0].abs().sum(-1) > 0
        assert reached[: position + 1].all()
        assert not reached[position + 1 :].any()


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
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=-100)
    expected = expected.view_as(targets).sum(-1)
    expected.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    for at_once in (4096, 5):  # in one part, and in parts that are recomputed in the backward pass
        monkeypatch.setattr("retroflow.model.loss.TOKENS_AT_ONCE", at_once)
        model.zero_grad()
        losses = model.loss(tokens, targets, retrieved, mask)
        losses.sum().backward()
        torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-10)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-10)


def test_a_model_without_cca_layers_has_no_encoder_and_ignores_neighbours():
    model = make(cca_layers=(), encoder_cross_attention_layers=())
    tokens, retrieved, mask = inputs(model)
    assert not any("encoder" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, retrieved, mask), model(tokens), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda t, r, k: (t[0], r, k), r"tokens: int64 \[batch, length >= 1\] is needed, torch.int64 \[14\] given"),
        (lambda t, r, k: (t[:, :0], None, None), "length >= 1"),
        (lambda t, r, k: (t.int(), r, k), "torch.int32"),
        (lambda t, r, k: (t + VOCABULARY, r, k), "tokens: token .* the vocabulary has 29 entries"),
        (lambda t, r, k: (t, r - VOCABULARY, k), "retrieved: token -"),
        (lambda t, r, k: (t, r[:, :2], k), r"14 tokens hold 3 whole chunks of 4"),
        (lambda t, r, k: (t, r[..., :7], k), r"retrieved: int64 \[2, 3, k, 8\] is needed"),
        (lambda t, r, k: (t, r, k.long()), "retrieved_mask: bool"),
        (lambda t, r, k: (t, r, k[:, :, :1]), r"retrieved_mask: bool \[2, 3, 2, 8\]"),
        (lambda t, r, k: (t, None, k), "given without retrieved"),
    ],
)
def test_wrong_inputs_are_refused_with_what_was_given_and_allowed(wrong, message):
    model = make()
    with pytest.raises(InvalidShapeError, match=message):
        model(*wrong(*inputs(model)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cca_layers": (2, 5)}, "names layer 5; layers are counted from 1 to model.num_layers = 4"),
        ({"cca_layers": (0,)}, "names layer 0"),
        ({"cca_layers": (2, 2)}, "twice"),
        ({"encoder_cross_attention_layers": (3,)}, "model.encoder_layers = 2"),
        ({"cca_layers": ()}, "decoder without retrieval"),
        ({"width": 0}, "model.width: 0 given"),
        ({"head_width": 0, "num_heads": 3}, "does not divide model.width 16"),
        ({"head_width": 5}, "model.head_width: 5 is odd"),
        ({"encoder_heads": 5}, "model.encoder_heads"),
        ({"dropout": 1.0}, "model.dropout: 1.0"),
        ({"copy_initialisation": True}, "share_encoder_embeddings: true"),
        ({"cca_scale": -1.0}, "cannot be negative"),
    ],
)
def test_impossible_configurations_name_the_key_and_the_remedy(change, message):
    with pytest.raises(RecipeError, match=message):
        dataclasses.replace(SMALL, **change)


def test_importing_the_model_needs_torch_alone():
    import subprocess
    import sys

    code = "import sys, retroflow.model.retro; print([n for n in ('lightning', 'transformers', 'faiss', 'omegaconf') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
