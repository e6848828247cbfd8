"""Nothing is seen too early, and everything is seen in time: on random configurations, whole and cached, in float64.

Every token and the neighbours of every window are probed: one row of a batch for each of them, in which it alone is
changed (rows are independent, test_retro.py). The first logit that moves must be the very one that may.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.model.random_models import VARIANTS, cases, changed, configurations, inputs, make, settings_for

NEVER = -1


def probes(case):
    """The case with a row for each probe after its one row: first every token changed, then every window's neighbours."""
    n, num_windows = case.tokens.shape[1], case.retrieved.shape[1]
    rows = 1 + n + num_windows
    tokens = case.tokens.repeat(rows, 1)
    retrieved, mask = case.retrieved.repeat(rows, 1, 1, 1), case.mask.repeat(rows, 1, 1, 1)
    for t in range(n):
        tokens[1 + t, t] = changed(tokens[1 + t, t])
    for w in range(num_windows):
        retrieved[1 + n + w, w] = changed(retrieved[1 + n + w, w])
    padding = None if case.padding is None else case.padding.repeat(rows)
    return {"tokens": tokens, "retrieved": retrieved, "mask": mask, "padding": padding}


def expected_first_changes(case):
    """Where each probe must be seen first, by the definition (RETRO's equation 1 and its attending chunks)."""
    padding = 0 if case.padding is None else int(case.padding[0])
    first = [t if t >= padding else NEVER for t in range(case.tokens.shape[1])]
    for w in range(case.retrieved.shape[1]):
        end = case.window_end(w)
        first.append(end - 1 if end > padding and can_be_read(case, w) else NEVER)
    return first


def can_be_read(case, window):
    """Whether a window's mask leaves anything that CCA may look at."""
    mask = case.mask[0, window][..., case.model.config.part_read]
    if case.model.config.next_token_values:
        mask = mask[..., :-1] & mask[..., 1:]
    return bool(mask.any())


def first_changes(logits, real):
    """The first real position at which each row after the first differs from the first row."""
    moved = ((logits[1:] - logits[0]).abs().amax(-1) > 1e-9) & real
    return torch.where(moved.any(-1), moved.int().argmax(-1), NEVER).tolist()


@settings_for(240)
@given(case=cases(rows=1))
def test_every_token_and_every_neighbour_is_first_seen_exactly_where_it_may_be(case):
    batch, expected = probes(case), expected_first_changes(case)
    assert first_changes(case.whole(**batch), case.real[0]) == expected
    assert first_changes(case.cached(**batch), case.real[0]) == expected


@settings_for(100)
@given(case=cases(rows=1, paper_step=True, padded=False))
def test_neighbours_of_a_chunk_are_first_seen_by_its_last_token(case):
    case.mask[:] = True
    n, m = case.tokens.shape[1], case.chunk_length
    whole, cached = (first_changes(read(**probes(case)), case.real[0]) for read in (case.whole, case.cached))
    assert whole[n:] == cached[n:] == [(u + 1) * m - 1 for u in range(n // m)]


@settings_for(40)
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


@settings_for(40)
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
