"""Attention knows distances, by either kind of positions, and nothing else about where tokens stand."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from retroflow.model.acceleration import accelerate
from retroflow.model.attention import SelfAttention
from retroflow.model.positions import make_positions
from tests.model.reference import rotary_product, sinusoids


def positions_of(kind, head_width=6):
    torch.manual_seed(0)
    made = make_positions(kind, width=10, num_heads=2, head_width=head_width, theta=100.0)
    return made.double() if kind == "relative" else made


def logits_of(positions, query, key, first_query=0):
    with torch.no_grad():
        product = positions.place_queries(query, first_query) @ positions.place_keys(key).mT
        bias = positions.bias(positions.place_queries(query, first_query), first_query, key.shape[-2])
    return product if bias is None else product + bias


@pytest.mark.parametrize("first_query", [0, 1, 7])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (5, 5), (1, 9), (9, 1), (4, 7)])
def test_relative_logits_are_the_formula_of_the_paper(num_queries, num_keys, first_query):
    positions = positions_of("relative")
    query, key = torch.randn(3, 2, num_queries, 6).double(), torch.randn(3, 2, num_keys, 6).double()
    logits = logits_of(positions, query, key, first_query)
    matrix = positions.distance.weight.detach().numpy()
    for row in range(3):
        for head in range(2):
            of_head = matrix[head * 6 : (head + 1) * 6]
            for i in range(num_queries):
                for j in range(num_keys):
                    distance = first_query + i - j
                    expected = query[row, head, i].numpy() @ (
                        key[row, head, j].numpy() + of_head @ sinusoids(distance, 10, 100.0)
                    )
                    assert logits[row, head, i, j].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("first_query", [0, 1, 7, 5000])
def test_rotary_logits_are_products_of_turned_vectors(first_query):
    positions = positions_of("rotary")
    query, key = torch.randn(2, 3, 6).double(), torch.randn(2, 4, 6).double()
    logits = logits_of(positions, query, key, first_query)
    for head in range(2):
        for i in range(3):
            for j in range(4):
                expected = rotary_product(query[head, i].numpy(), key[head, j].numpy(), first_query + i - j, 100.0)
                assert logits[head, i, j].item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("kind", ["rotary", "relative"])
def test_equal_tokens_at_equal_distances_have_equal_logits(kind):
    positions = positions_of(kind)
    query, key = torch.randn(2, 1, 6).double().expand(-1, 8, -1), torch.randn(2, 1, 6).double().expand(-1, 8, -1)
    logits = logits_of(positions, query, key)
    for offset in range(-7, 8):
        diagonal = logits.diagonal(offset, dim1=-2, dim2=-1)
        torch.testing.assert_close(diagonal, diagonal[..., :1].expand_as(diagonal), rtol=1e-10, atol=1e-12)
    distinct = torch.stack([logits.diagonal(offset, dim1=-2, dim2=-1)[0, 0] for offset in range(-7, 8)])
    assert len(distinct.unique()) == 15  # distances ahead and behind are told apart


@pytest.mark.parametrize("kind", ["rotary", "relative"])
@pytest.mark.parametrize("causal", [True, False])
def test_self_attention_does_not_care_where_a_text_begins(kind, causal):
    attention = SelfAttention(10, 2, 6, positions=positions_of(kind), causal=causal).double()
    x = torch.randn(2, 9, 10).double()
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[4:, 4:] = torch.ones(5, 5, dtype=torch.bool).tril() if causal else True
    mask[range(4), range(4)] = True
    with torch.no_grad():
        torch.testing.assert_close(attention(x, mask)[:, 4:], attention(x[:, 4:]), rtol=1e-9, atol=1e-11)


def test_order_matters_to_a_bidirectional_attention_only_through_positions():
    x = torch.randn(1, 6, 10).double()
    for kind in ("rotary", "relative"):
        attention = SelfAttention(10, 2, 6, positions=positions_of(kind), causal=False).double()
        with torch.no_grad():
            assert not torch.allclose(attention(x.flip(1)).flip(1), attention(x), rtol=1e-3)
            if kind == "relative":
                attention.positions.distance.weight.zero_()
                torch.testing.assert_close(attention(x.flip(1)).flip(1), attention(x), rtol=1e-9, atol=1e-11)


def test_a_half_precision_model_keeps_exact_angles():
    rotary = make_positions("rotary", width=8, num_heads=1, head_width=8, theta=10000.0)
    ones = torch.ones(1, 3001, 8, dtype=torch.float64)
    exact = rotary.place_queries(ones)
    torch.testing.assert_close(rotary.place_queries(ones.bfloat16()).double(), exact, rtol=0, atol=2e-2)


def test_turning_has_derivatives_and_keeps_the_layout_of_the_projections():
    rotary = make_positions("rotary", width=8, num_heads=2, head_width=4, theta=100.0)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)  # [b, t, h, w]
    turned = rotary.place_keys(x.transpose(1, 2), 3)
    assert turned.transpose(1, 2).is_contiguous()
    accelerate(rotary)
    torch.testing.assert_close(rotary.place_keys(x.transpose(1, 2), 3), turned)
    assert rotary.place_keys(x.transpose(1, 2), 3).transpose(1, 2).is_contiguous()
    assert gradcheck(lambda x: rotary.place_keys(x.transpose(1, 2), 3), (x,))
    assert gradgradcheck(lambda x: rotary.place_keys(x.transpose(1, 2), 3), (x,))
