"""Windows: when neighbours are looked up, and which of them a position reads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retroflow.model.windows import checked_step, num_windows, windows_of
from tests.model.random_models import cases, changed, inputs, make, settings_for

SIZES = st.integers(1, 9).flatmap(lambda m: st.tuples(st.just(m), st.integers(1, m), st.integers(0, 5 * m)))


@settings_for(200)
@given(sizes=SIZES)
def test_windows_are_the_last_chunk_lengths_of_tokens_at_every_step(sizes):
    m, step, length = sizes
    ends = [end for end in range(m, length + 1) if (end - m) % step == 0]
    assert num_windows(length, m, step) == len(ends)
    if ends:
        tokens = torch.arange(length)[None]
        assert windows_of(tokens, m, step)[0].tolist() == [list(range(end - m, end)) for end in ends]
        states = torch.randn(2, length, 3)
        expected = torch.stack([states[:, end - m : end] for end in ends], dim=1)
        assert windows_of(states, m, step).equal(expected)


def test_with_the_paper_s_step_windows_are_chunks():
    assert checked_step(None, 64) == 64
    assert [num_windows(n, 64, 64) for n in (0, 1, 63, 64, 127, 128, 2048)] == [0, 0, 0, 1, 1, 2, 32]


@settings_for(60)
@given(case=cases(rows=1, padded=False))
def test_the_step_of_a_chunk_is_the_default(case):
    tokens, retrieved, mask = inputs(case.model, rows=1, length=case.tokens.shape[1])
    with torch.no_grad():
        default = case.model(tokens, retrieved, mask)
        torch.testing.assert_close(
            case.model(tokens, retrieved, mask, retrieval_step=case.chunk_length), default, rtol=0, atol=0
        )


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_position_reads_the_newest_window_and_none_before_it(step):
    # CCA in the last layer alone: nothing carries what an earlier position read to a later one.
    model = make(num_layers=2, cca_layers=(2,))
    tokens, retrieved, mask = inputs(model, rows=1, length=19, hole=0, step=step)
    with torch.no_grad():
        before = model(tokens, retrieved, mask, retrieval_step=step)
        for window in range(retrieved.shape[1]):
            other = retrieved.clone()
            other[:, window] = changed(retrieved[:, window])
            moved = ((model(tokens, other, mask, retrieval_step=step) - before).abs().amax(-1) > 1e-9)[0]
            end = 4 + window * step
            assert moved.nonzero().flatten().tolist() == list(range(end - 1, min(end + step - 1, 19)))


def test_retrieving_more_often_changes_what_is_predicted():
    model = make()
    tokens, retrieved, mask = inputs(model, length=16, hole=0, step=1)
    with torch.no_grad():
        often = model(tokens, retrieved, mask, retrieval_step=1)
        seldom = model(tokens, retrieved[:, ::4], mask[:, ::4])  # the same neighbours where both look them up
    torch.testing.assert_close(often[:, :4], seldom[:, :4], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(often[:, 4:], seldom[:, 4:], rtol=1e-3)
