"""Tokens are chosen with the probabilities that the options say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retroflow.errors import DamagedDataError, GenerationError
from retroflow.generation import GenerationOptions
from retroflow.generation.options import LEAST_TEMPERATURE
from retroflow.generation.sampling import Sampler, drawn_from, penalised

CPU = torch.device("cpu")


def literal_distribution(logits, options):
    """The probabilities [v] by loops, as the options' descriptions read."""
    scaled = logits / options.temperature
    order = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    if options.top_k:
        order = order[: options.top_k]
    weights = {token: np.exp(scaled[token] - scaled[order[0]]) for token in order}
    mass = sum(weights.values())
    kept, total = {}, 0.0
    for token in order:
        kept[token] = weights[token] / mass
        total += kept[token]
        if total >= options.top_p:
            break
    return np.array([kept.get(token, 0.0) / total for token in range(len(logits))])


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.integers(-400, 400), min_size=2, max_size=9, unique=True),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.integers(0, 4),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
)
def test_a_fine_comb_of_numbers_draws_the_literal_distribution(logits, temperature, top_k, top_p):
    """4,000 numbers evenly in [0, 1) are turned into tokens in the right shares: the inverse cumulative distribution."""
    options = GenerationOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    values = np.array(logits) / 100
    comb = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    drawn = drawn_from(torch.from_numpy(values).expand(4000, -1), comb, options)
    shares = np.bincount(drawn.numpy(), minlength=len(values)) / 4000
    expected = literal_distribution(values, options)
    np.testing.assert_allclose(shares, expected, atol=1.1 / 4000 * len(values))
    assert ((shares > 0) <= (expected > 0)).all()


def test_the_nucleus_keeps_the_mass_and_the_token_that_crosses_it():
    """A nucleus of 0.9 keeps 0.9, not 0.1: of .5, .3, .15, .05 three tokens stay."""
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log().expand(1000, -1)
    comb = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    shares = {
        top_p: np.bincount(drawn_from(logits, comb, GenerationOptions(temperature=1.0, top_p=top_p)), minlength=4)
        / 1000
        for top_p in (0.9, 0.5, 0.1)
    }
    np.testing.assert_allclose(shares[0.9], np.array([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.002)
    np.testing.assert_array_equal(shares[0.5], [1, 0, 0, 0])
    np.testing.assert_array_equal(shares[0.1], [1, 0, 0, 0])


def test_a_number_that_is_rounded_to_one_draws_a_token_that_has_a_probability():
    """Numbers are drawn in float64; the last ones below 1 are 1 in float32."""
    logits = torch.tensor([[5.0, 4.0, -200.0, -300.0]])
    nearly_one = torch.tensor([np.nextafter(1.0, 0.0)], dtype=torch.float32)
    assert nearly_one == 1
    for options in ({}, {"top_k": 2}, {"top_p": 0.99}):
        assert int(drawn_from(logits, nearly_one, GenerationOptions(temperature=1.0, **options))) == 1


def test_temperature_zero_is_the_likeliest_and_a_small_one_nearly():
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for temperature in (0.0, 1e-4):
        sampler = make_sampler(50, temperature=temperature)
        assert torch.equal(sampler.choose(logits), logits.argmax(-1))


def make_sampler(num_rows, vocabulary=20, prompts=None, seeds=None, **options):
    return Sampler(
        GenerationOptions(**options),
        prompts or [[]] * num_rows,
        seeds or range(num_rows),
        vocabulary_size=vocabulary,
        device=CPU,
    )


def test_a_row_draws_the_same_whoever_is_beside_it():
    logits = torch.randn(6, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = make_sampler(6, temperature=1.0)
    steps = [together.choose(logits) for _ in range(5)]
    assert len({tuple(step.tolist()) for step in steps}) > 1
    for row in range(6):
        alone = make_sampler(1, seeds=[row], temperature=1.0)
        assert [int(alone.choose(logits[row : row + 1])) for _ in range(5)] == [int(step[row]) for step in steps]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0.8}, {"temperature": 1.0, "top_p": 0.7}])
def test_samplers_of_a_kind_draw_together_what_each_draws_alone(options):
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    alone, others = ([make_sampler(1, seeds=[row], **options) for row in range(3)] for _ in range(2))
    assert len({sampler.kind for sampler in others}) == 1
    for turn in range(6):
        wanted = [int(sampler.choose(logits[row : row + 1])) for row, sampler in enumerate(alone)]
        rows = [0, 1, 2] if turn % 2 else [2, 0, 1]  # their streams go on, whoever is beside them
        found = Sampler.together([others[row] for row in rows]).choose(logits[rows])
        assert found.tolist() == [wanted[row] for row in rows]


def test_what_draws_in_another_way_or_penalises_is_of_another_kind():
    ways = [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.0, "top_k": 2},
        {"temperature": 1.0, "top_p": 0.5},
    ]
    samplers = [make_sampler(1, **way) for way in ways] + [
        make_sampler(1, prompts=[[0]], repetition_penalty=2.0) for _ in range(2)
    ]
    assert len({sampler.kind for sampler in samplers}) == len(samplers)


def test_kept_rows_go_on_as_before():
    logits = torch.randn(4, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    options = {"temperature": 1.0, "repetition_penalty": 2.0, "prompts": [[row] for row in range(4)]}
    whole, part = make_sampler(4, **options), make_sampler(4, **options)
    whole.choose(logits)
    part.choose(logits)
    part.select([3, 1])
    for _ in range(4):
        assert torch.equal(whole.choose(logits)[[3, 1]], part.choose(logits[[3, 1]]))


def test_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    said = torch.tensor([[True, True, False, False]])
    assert penalised(logits, said, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0]]


def test_repetition_penalty_knows_the_prompt_and_what_was_chosen():
    logits = torch.tensor([[4.0, 3.0, 2.5, -9.0]])
    sampler = make_sampler(1, vocabulary=4, prompts=[[0]], repetition_penalty=1.5)
    assert [int(sampler.choose(logits)) for _ in range(3)] == [1, 0, 0]
    free = make_sampler(1, vocabulary=4, prompts=[[0]])
    assert [int(free.choose(logits)) for _ in range(3)] == [0, 0, 0]


def test_half_precision_logits_are_drawn_in_float32():
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.0]], dtype=torch.bfloat16).expand(64, -1)
    chosen = make_sampler(64, vocabulary=4, temperature=1.0).choose(logits)
    assert set(chosen.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_told(wrong):
    with pytest.raises(DamagedDataError, match="logits that are not finite"):
        make_sampler(1, vocabulary=3).choose(torch.tensor([[0.0, wrong, 1.0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; allowed: a whole number of at least 1."),
        ({"temperature": -0.5}, "temperature is -0.5; allowed: a number of at least 0."),
        (
            {"temperature": 1e-40},
            "temperature is 1e-40; allowed: 0 (the most likely token) or a number of at least 1e-06.",
        ),
        ({"temperature": "hot"}, 'temperature is "hot" (text); allowed: a number of at least 0.'),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5 (a number); allowed: a whole number of at least 1."),
        ({"retrieval_step": 2.0}, "retrieval_step is 2.0 (a number); allowed: a whole number of at least 1 or null."),
        ({"align": 1}, "align is 1 (a whole number); allowed: true or false."),
        ({"temperature": float("nan")}, "temperature is nan; allowed: a finite number."),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0; allowed: a number above 0 and up to 1."),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p is 1.5"),
        ({"temperature": 1.0, "top_k": -1}, "top_k is -1; allowed: a whole number of at least 0."),
        ({"top_k": 5}, "top_k is 5; it has no effect at temperature 0; give a temperature above 0."),
        ({"top_p": 0.9}, "top_p is 0.9; it has no effect at temperature 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; allowed: a number above 0."),
        ({"retrieval_step": 0}, "retrieval_step is 0; allowed: a whole number of at least 1 or null."),
        ({"num_neighbours": 0}, "num_neighbours is 0; allowed"),
        ({"batch_size": 0}, "batch_size is 0; allowed"),
        ({"seed": -1}, "seed is -1; allowed: a whole number of at least 0."),
        ({"stop": "end"}, 'stop is "end" (text); allowed: a list, each item text that is not empty.'),
        ({"stop": ("a", "")}, 'stop[1] is ""; allowed: text that is not empty.'),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(GenerationError) as caught:
        GenerationOptions(**options)
    assert message in str(caught.value)


def test_the_least_temperature_takes_the_likeliest_token():
    assert GenerationOptions(stop=["a"]).stop == ("a",)
    sampler = make_sampler(1, vocabulary=3, temperature=LEAST_TEMPERATURE)
    assert sampler.choose(torch.tensor([[-90.0, 90.0, 89.0]])).tolist() == [1]


def test_all_wrong_options_are_told_at_once():
    with pytest.raises(GenerationError) as caught:
        GenerationOptions(max_new_tokens=0, seed=-1, stop=("",))
    assert len(str(caught.value).splitlines()) == 3
