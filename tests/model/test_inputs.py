"""Wrong input and impossible configurations: what was wrong, given and allowed."""

import dataclasses

import pytest
import torch

from retroflow.errors import InvalidShapeError, RecipeError
from tests.model.random_models import SMALL, VOCABULARY, inputs, make


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
        ({"head_width": 5}, "model.head_width: a head of 5 features is odd; rotary positions turn pairs"),
        ({"encoder_head_width": 3}, "model.encoder_head_width: a head of 3 features is odd"),
        ({"encoder_heads": 4}, "model.encoder_head_width: a head of 3 features is odd"),
        ({"cca_heads": 16}, "model.cca_heads: a head of 1 features is odd"),
        ({"cca_heads": 3}, "model.cca_heads: 3 does not divide model.width 16"),
        ({"encoder_head_width": -2}, "model.encoder_head_width: -2 given; it cannot be negative"),
        ({"positions": "learned"}, "model.positions: 'learned' given; rotary, relative are allowed"),
        ({"retrieved_part": "none"}, "model.retrieved_part: 'none' given; both, neighbour, continuation are allowed"),
        (
            {"chunk_length": 1, "retrieved_part": "neighbour", "next_token_values": True},
            "one token of a neighbour is read, which has no next",
        ),
        ({"encoder_heads": 5}, "model.encoder_heads: 5 does not divide model.encoder_width 12"),
        ({"dropout": 1.0}, "model.dropout: 1.0"),
        ({"copy_initialisation": True}, "share_encoder_embeddings: true"),
        ({"cca_scale": -1.0}, "cannot be negative"),
    ],
)
def test_impossible_configurations_name_the_key_and_the_remedy(change, message):
    with pytest.raises(RecipeError, match=message):
        dataclasses.replace(SMALL, **change)


def test_odd_heads_are_allowed_where_positions_do_not_turn_pairs():
    options = {"head_width": 5, "encoder_heads": 4, "positions": "relative"}
    model = make(**options)
    with torch.no_grad():
        assert torch.isfinite(model(*inputs(model))).all()
    dataclasses.replace(SMALL, cca_heads=16, cca_positions=False)


def test_all_problems_of_a_configuration_are_named_at_once():
    with pytest.raises(RecipeError) as error:
        dataclasses.replace(SMALL, cca_layers=(9,), dropout=2.0, positions="none")
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "model.dropout",
        "model.cca_layers",
        "model.positions",
    ]


@pytest.mark.parametrize("step", [0, 5, -1, 2.0, "2"])
def test_an_impossible_retrieval_step_is_refused(step):
    model = make()
    tokens, retrieved, mask = inputs(model)
    message = rf"retrieval_step: {step} given; whole numbers from 1 to 4 \(the chunk length\) are allowed"
    with pytest.raises(InvalidShapeError, match=message):
        model(tokens, retrieved, mask, retrieval_step=step)
    with pytest.raises(InvalidShapeError, match=message):
        model.new_cache(retrieval_step=step)


def test_neighbours_of_chunks_are_refused_where_a_step_asks_for_those_of_windows():
    model = make()
    with pytest.raises(
        InvalidShapeError, match=r"14 tokens hold 6 windows of 4 at a retrieval step of 2; .* \[2, 3, 2, 8\] given"
    ):
        model(*inputs(model), retrieval_step=2)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            torch.zeros(2, 13, dtype=torch.int64),
            r"targets: int64 \[2, 14\], one for each token, is needed, torch.int64 \[2, 13\] given",
        ),
        (torch.zeros(2, 14), "torch.float32"),
        (torch.full((2, 14), VOCABULARY), "targets: token 29 given; the vocabulary has 29 entries"),
        (torch.full((2, 14), -1), "targets: token -1 given"),
    ],
)
def test_wrong_targets_are_refused(targets, message):
    model = make()
    tokens, retrieved, mask = inputs(model)
    with pytest.raises(InvalidShapeError, match=message):
        model.loss(tokens, targets, retrieved, mask)


def test_loss_refuses_what_forward_refuses():
    model = make()
    tokens, retrieved, _ = inputs(model)
    with pytest.raises(InvalidShapeError, match="14 tokens hold 3 whole chunks of 4"):
        model.loss(tokens, tokens, retrieved[:, :2])
    with pytest.raises(InvalidShapeError, match="tokens: token 29"):
        model.loss(torch.full_like(tokens, VOCABULARY), tokens)


def test_a_sequence_may_end_inside_a_chunk_and_be_shorter_than_one():
    model = make()
    for length in (1, 3, 4, 5, 9):
        tokens, retrieved, mask = inputs(model, length=length)
        with torch.no_grad():
            assert model(tokens, retrieved, mask).shape == (2, length, VOCABULARY)
