"""Wrong input and impossible configurations: what was wrong, given and allowed."""

import dataclasses

import numpy as np
import pytest
import torch

from retroflow.errors import InvalidShapeError, UsageError
from tests.model.random_models import SMALL, VOCABULARY, inputs, make


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda t, r, k: (t[0], r, k), r"tokens: int64 \[batch, length >= 1\] is needed, torch.int64 \[14\] given"),
        (lambda t, r, k: (t[:, :0], None, None), "length >= 1"),
        (lambda t, r, k: (t.int(), r, k), "torch.int32"),
        (lambda t, r, k: (t + VOCABULARY, r, k), "tokens: token .* the vocabulary has 29 entries"),
        (lambda t, r, k: (t, r - VOCABULARY, k), "retrieved: token -"),
        (
            lambda t, r, k: (t.tolist(), r, k),
            r"tokens: int64 \[batch, length >= 1\] is needed, list and no tensor given",
        ),
        (lambda t, r, k: (None, r, k), "tokens: .* NoneType and no tensor given"),
        (lambda t, r, k: (t, r[:, :2], k), r"14 tokens, not a multiple of 4, hold 3 whole chunks of 4"),
        (lambda t, r, k: (t[:, :12], r[:, :2], k), r"12 tokens hold 3 whole chunks of 4"),
        (lambda t, r, k: (t, r[:1], k), r"retrieved: int64 \[2, 3, k, 8\] .* torch.int64 \[1, 3, 2, 8\] given"),
        (lambda t, r, k: (t, r[:, :, 0], k), r"torch.int64 \[2, 3, 8\] given"),
        (lambda t, r, k: (t, r.float(), k), r"torch.float32 \[2, 3, 2, 8\] given"),
        (lambda t, r, k: (t, r.tolist(), k), "retrieved: .* list and no tensor given"),
        (lambda t, r, k: (t, r, k.tolist()), "retrieved_mask: .* list and no tensor given"),
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
        ({"cca_layers": (0,)}, r"model.cca_layers\[0\] is 0; allowed: a whole number of at least 1."),
        ({"cca_layers": (2, 2)}, "twice"),
        ({"encoder_cross_attention_layers": (3,)}, "model.encoder_layers = 2"),
        ({"cca_layers": ()}, "decoder without retrieval"),
        ({"width": 0}, "model.width is 0; allowed: a whole number from 1 to 1048576."),
        ({"head_width": 0, "num_heads": 3}, "does not divide model.width 16"),
        ({"head_width": 5}, "model.head_width is 5, and a head has 5 features; rotary positions turn pairs"),
        ({"encoder_head_width": 3}, "model.encoder_head_width is 3, and a head has 3 features"),
        ({"encoder_heads": 4}, "model.encoder_head_width is 0, and a head has 3 features"),
        ({"cca_heads": 16}, "model.cca_heads is 16, and a head has 1 features"),
        ({"cca_heads": 3}, "model.cca_heads is 3, which does not divide model.width 16"),
        ({"encoder_head_width": -2}, "model.encoder_head_width is -2; allowed: a whole number from 0 to 1048576."),
        ({"positions": "learned"}, r'model.positions is "learned" .text.; allowed: "rotary" or "relative".'),
        ({"retrieved_part": "none"}, 'model.retrieved_part is "none" .text.; allowed: "both", "neighbour" or'),
        (
            {"chunk_length": 1, "retrieved_part": "neighbour", "next_token_values": True},
            "one token of a neighbour is read, which has no next",
        ),
        ({"encoder_heads": 5}, "model.encoder_heads is 5, which does not divide model.encoder_width 12"),
        ({"dropout": 1.0}, "model.dropout is 1.0; allowed: a number from 0 to below 1."),
        ({"copy_initialisation": True}, "set model.share_encoder_embeddings to true too."),
        ({"cca_scale": -1.0}, "model.cca_scale is -1.0; allowed: a number from 0 to 1000000."),
        ({"cca_scale": float("inf")}, "model.cca_scale is inf; allowed: a finite number."),
        ({"rotary_theta": 0}, "model.rotary_theta is 0; allowed: a number above 0."),
        (
            {"cca_layers": 2},
            r"model.cca_layers is 2 .a whole number.; allowed: a list, each item a whole .* Write \[2\].",
        ),
        ({"cca_layers": (2.0,)}, r"model.cca_layers\[0\] is 2.0 .a number.; allowed: a whole number"),
        ({"chunk_length": 2.5}, "model.chunk_length is 2.5 .a number.; allowed: a whole number from 1 to 1048576."),
        ({"vocabulary_size": True}, "model.vocabulary_size is true .a truth value.; allowed: a whole number"),
        ({"width": None}, "model.width is nothing .null.; allowed: a whole number"),
        ({"smear": 1}, "model.smear is 1 .a whole number.; allowed: true or false."),
    ],
)
def test_impossible_configurations_name_the_key_and_the_remedy(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(SMALL, **change)


def test_odd_heads_are_allowed_where_positions_do_not_turn_pairs():
    options = {"head_width": 5, "encoder_heads": 4, "positions": "relative"}
    model = make(**options)
    with torch.no_grad():
        assert torch.isfinite(model(*inputs(model))).all()
    dataclasses.replace(SMALL, cca_heads=16, cca_positions=False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cca_layers": (9,), "encoder_cross_attention_layers": (4,)},
        {"width": 0, "dropout": 2.0},
        {"width": "16", "cca_layers": None, "positions": "none"},
    ],
)
def test_all_problems_of_a_configuration_are_named_at_once(wrong):
    with pytest.raises(UsageError) as error:
        dataclasses.replace(SMALL, **wrong)
    assert [line.split(":")[0].split()[0] for line in str(error.value).splitlines()] == [
        f"model.{name}" for name in wrong
    ]


def test_lists_and_whole_numbers_become_what_the_fields_are():
    config = dataclasses.replace(SMALL, cca_layers=[2, 4], dropout=0, width=np.int64(16))
    assert config == SMALL and hash(config) == hash(SMALL)
    assert type(config.width) is int and type(config.dropout) is float


def test_what_stands_where_nothing_was_retrieved_need_not_be_a_token():
    model = make()
    tokens, retrieved, mask = inputs(model)
    mask[0, 1, 0] = False
    with torch.no_grad():
        wanted = model(tokens, retrieved, mask)
        for nothing in (-1, VOCABULARY, 2**40):
            given = retrieved.masked_fill(~mask, nothing)
            assert torch.equal(model(tokens, given, mask), wanted)
            by_neighbour = retrieved.masked_fill(~mask.any(-1)[..., None], nothing)
            assert torch.equal(model(tokens, by_neighbour, mask.any(-1)), model(tokens, retrieved, mask.any(-1)))
    with pytest.raises(InvalidShapeError, match="retrieved: token -1 given"):
        model(tokens, retrieved.masked_fill(~mask, -1))


@pytest.mark.parametrize("step", [0, 5, -1, 2.0, "2"])
def test_an_impossible_retrieval_step_is_refused(step):
    model = make()
    tokens, retrieved, mask = inputs(model)
    message = rf"retrieval_step is {step}; allowed: a whole number from 1 to 4, the chunk length."
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
        ([[0] * 14] * 2, "targets: .* list and no tensor given"),
        (torch.full((2, 14), VOCABULARY), "targets: token 29 given; the vocabulary has 29 entries"),
        (torch.full((2, 14), -1), "targets: token -1 given"),
    ],
)
def test_wrong_targets_are_refused(targets, message):
    model = make()
    tokens, retrieved, mask = inputs(model)
    with pytest.raises(InvalidShapeError, match=message):
        model.loss(tokens, targets, retrieved, mask)


def test_a_cache_of_another_model_is_refused():
    model = make()
    tokens, _, _ = inputs(model)
    for other in (make(chunk_length=3), make(num_layers=2, cca_layers=(2,))):
        with pytest.raises(InvalidShapeError, match=r"cache: that of another model .* `new_cache` of this model"):
            model.extend(tokens, other.new_cache())
    with pytest.raises(InvalidShapeError, match="cache: NoneType and no tensor given"):
        model.extend(tokens, None)


def test_no_rows_give_no_logits():
    model = make()
    tokens, retrieved, mask = (x[:0] for x in inputs(model))
    with torch.no_grad():
        assert model(tokens, retrieved, mask).shape == (0, 14, VOCABULARY)
        assert model.loss(tokens, tokens, retrieved, mask).shape == (0,)


def test_loss_refuses_what_forward_refuses():
    model = make()
    tokens, retrieved, _ = inputs(model)
    with pytest.raises(InvalidShapeError, match="14 tokens, not a multiple of 4, hold 3 whole chunks of 4"):
        model.loss(tokens, tokens, retrieved[:, :2])
    with pytest.raises(InvalidShapeError, match="tokens: token 29"):
        model.loss(torch.full_like(tokens, VOCABULARY), tokens)


def test_a_sequence_may_end_inside_a_chunk_and_be_shorter_than_one():
    model = make()
    for length in (1, 3, 4, 5, 9):
        tokens, retrieved, mask = inputs(model, length=length)
        with torch.no_grad():
            assert model(tokens, retrieved, mask).shape == (2, length, VOCABULARY)
