"""A cache changes no logit: any split into calls, any retrieval step, any padding; on random models in float64."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retroflow.errors import InvalidShapeError
from retroflow.model import cache as module
from retroflow.model.cache import RetroCache
from retroflow.model.windows import num_windows
from tests.model.random_models import VARIANTS, VOCABULARY, Case, cases, inputs, make, settings_for


def assert_equal(case, got, expected):
    torch.testing.assert_close(got[case.real], expected[case.real], rtol=1e-9, atol=1e-11)


@settings_for(240)
@given(case=cases())
def test_a_cache_gives_the_logits_of_the_forward_pass(case):
    assert_equal(case, case.cached(), case.whole())


@settings_for(80)
@given(case=cases(), pairs=st.integers(1, 200), retrieved=st.integers(1, 60), off=st.booleans())
def test_long_texts_are_read_in_parts_whose_masks_are_small(case, pairs, retrieved, off):
    """Whatever the bounds, the logits stay; a mask is larger than they allow for a single token or segment alone."""
    how = {"retrieved": None, "mask": None} if off else {}
    masks, make_mask = [], RetroCache.attention_mask

    def watched(cache, num_tokens):
        masks.append((case.tokens.shape[0] * num_tokens * (cache.length + num_tokens), num_tokens))
        return make_mask(cache, num_tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MASK_AT_ONCE", pairs)
        patch.setattr(module, "RETRIEVED_AT_ONCE", retrieved)
        patch.setattr(RetroCache, "attention_mask", watched)
        got = case.cached([case.tokens.shape[1]], **how)
    assert_equal(case, got, case.whole(**how))
    longest = 1 if off else case.chunk_length
    assert all(size <= pairs or num_tokens <= longest for size, num_tokens in masks)


@settings_for(40)
@given(case=cases())
def test_a_cache_gives_the_logits_of_the_forward_pass_without_retrieval(case):
    off = {"retrieved": None, "mask": None}
    assert_equal(case, case.cached(**off), case.whole(**off))


@settings_for(40)
@given(case=cases(rows=2))
def test_windows_for_which_nothing_was_looked_up_equal_windows_without_neighbours(case):
    looked_up = [case.random.random() < 0.5 for _ in range(case.retrieved.shape[1])]
    mask = case.mask & torch.tensor(looked_up, dtype=torch.bool)[:, None, None]
    cache, out = case.model.new_cache(padding=case.padding, retrieval_step=case.step), []
    for t in range(case.tokens.shape[1]):
        given = ()
        if cache.num_new_windows(1):
            window = slice(w := num_windows(t, case.chunk_length, case.step), w + 1)
            given = (case.retrieved[:, window], case.mask[:, window]) if looked_up[w] else (None,)
        out.append(case.model.extend(case.tokens[:, t : t + 1], cache, *given))
    assert_equal(case, torch.cat(out, dim=1), case.whole(mask=mask))


@settings_for(80)
@given(case=cases(rows=3))
def test_selected_rows_go_on_as_if_they_had_been_alone(case):
    lengths = case.cuts()
    kept = torch.tensor(case.random.choice([[0], [2], [2, 0], [1, 2], [0, 0, 1], [2, 1, 0]]))
    moment = case.random.randrange(len(lengths) + 1)
    cache = case.model.new_cache(padding=case.padding, retrieval_step=case.step)
    parts = [case.advance(cache, lengths[:moment])[kept]] if moment else []
    cache.select(kept)
    padding = None if case.padding is None else case.padding[kept]
    rest = dataclasses.replace(
        case, tokens=case.tokens[kept], retrieved=case.retrieved[kept], mask=case.mask[kept], padding=padding
    )
    parts += [rest.advance(cache, lengths[moment:])] if lengths[moment:] else []
    assert_equal(rest, torch.cat(parts, dim=1), rest.whole())
    for place in range(len(kept)):
        alone = {
            name: value if value is None else value[place : place + 1]
            for name, value in vars(rest).items()
            if name in ("tokens", "retrieved", "mask", "padding")
        }
        alone = dataclasses.replace(rest, **alone)
        torch.testing.assert_close(
            torch.cat(parts, dim=1)[place][rest.real[place]], alone.whole()[0][alone.real[0]], rtol=1e-9, atol=1e-11
        )


@settings_for(60)
@given(case=cases(rows=2, padded=False), ends=st.tuples(st.integers(0, 2), st.integers(0, 2)), more=st.integers(0, 2))
def test_rows_that_join_others_go_on_as_if_they_had_been_alone(case, ends, more):
    """Whatever the lengths of both, and with padding in common that is dropped or added."""
    m, s = case.chunk_length, case.step
    lengths = [m + end * s for end in ends]
    tokens, retrieved, mask = inputs(case.model, rows=2, length=max(lengths) + 2 * m + 1, seed=1, step=s)
    rows = [
        Case(case.model, tokens[row : row + 1], retrieved[row : row + 1], mask[row : row + 1], None, s, case.random)
        for row in (0, 1)
    ]
    caches = [case.model.new_cache(retrieval_step=s) for _ in rows]
    for row, cache, length in zip(rows, caches, lengths, strict=True):
        row.advance(cache, [length])
    caches[0].join(caches[1], max(lengths) + more * s)
    for place in range(2 * m):
        places = [length + place for length in lengths]
        part = torch.stack([tokens[row, place] for row, place in enumerate(places)])[:, None]
        found = (None, None)
        if caches[0].num_new_windows(1):
            windows = [num_windows(place, m, s) for place in places]
            found = (torch.stack([each[row, w : w + 1] for row, w in enumerate(windows)]) for each in (retrieved, mask))
        logits = case.model.extend(part, caches[0], *found)
        for row, place in enumerate(places):
            torch.testing.assert_close(logits[row, 0], rows[row].whole()[0, place], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_cache_outlives_many_chunks(variant):
    model = make(**VARIANTS[variant])
    tokens, retrieved, mask = inputs(model, length=70, step=3)
    case = Case(model, tokens, retrieved, mask, None, 3, None)
    assert_equal(case, case.cached([1] * 70), case.whole())
    assert_equal(case, case.cached([37, 1, 32]), case.whole())


def test_two_caches_of_one_model_know_nothing_of_each_other():
    model = make()
    first, second = inputs(model, seed=1), inputs(model, seed=2)
    caches = model.new_cache(), model.new_cache()
    logits = ([], [])
    for t in range(14):
        for (tokens, retrieved, mask), cache, out in zip((first, second), caches, logits, strict=True):
            windows = slice(t // 4, t // 4 + cache.num_new_windows(1))
            out.append(model.extend(tokens[:, t : t + 1], cache, retrieved[:, windows], mask[:, windows]))
    with torch.no_grad():
        for given_, out in zip((first, second), logits, strict=True):
            torch.testing.assert_close(torch.cat(out, dim=1), model(*given_), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_cache_counts_the_windows_that_tokens_close(step):
    model = make()
    for seen in range(20):
        cache = model.new_cache(retrieval_step=step)
        cache.length = seen
        for new in range(1, 12):
            ends = [end for end in range(4, 60, step) if seen < end <= seen + new]
            assert cache.num_new_windows(new) == len(ends)
            starts = []
            while cache.length < seen + new:
                starts.append(cache.length)
                cache.length += cache.segment(seen + new - cache.length)
            # The token that closes a window begins a segment.
            assert cache.length == seen + new and starts == sorted({seen, *(end - 1 for end in ends)})
            cache.length = seen


def test_a_cache_keeps_one_window_however_long_the_text():
    model = make()
    tokens, retrieved, mask = inputs(model, length=40)
    cache = model.new_cache()
    model.extend(tokens, cache, retrieved, mask)
    assert cache.length == 40
    assert cache.window.states.shape == (2, 1, 2, 8, 12)
    assert cache.recent.shape == (2, 4, 16)


def test_extend_needs_no_gradients_and_leaves_the_mode_alone():
    model = make()
    tokens, retrieved, mask = inputs(model)
    assert not model.extend(tokens, model.new_cache(), retrieved, mask).requires_grad
    assert not model.training


@pytest.mark.parametrize(
    ("seen", "new", "windows", "message"),
    [
        (
            0,
            9,
            1,
            r"retrieved: int64 \[2, 2, k, 8\] is needed \(9 tokens after 0 close 2 windows; .* \[2, 1, 2, 8\] given",
        ),
        (3, 1, 2, r"\[2, 1, k, 8\] is needed \(1 tokens after 3 close 1 windows"),
        (4, 2, 1, r"\[2, 0, k, 8\] is needed \(2 tokens after 4 close 0 windows"),
    ],
)
def test_extend_says_how_many_windows_it_needs(seen, new, windows, message):
    model = make()
    cache = model.new_cache()
    if seen:
        model.extend(torch.zeros(2, seen, dtype=torch.int64), cache)
    retrieved = torch.zeros(2, windows, 2, 8, dtype=torch.int64)
    with pytest.raises(InvalidShapeError, match=message):
        model.extend(torch.zeros(2, new, dtype=torch.int64), cache, retrieved)
    assert cache.length == seen


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(2, 0, dtype=torch.int64), r"length >= 1\] is needed, torch.int64 \[2, 0\] given"),
        (torch.zeros(2, dtype=torch.int64), r"torch.int64 \[2\] given"),
        (torch.zeros(2, 1), "torch.float32"),
        (torch.full((2, 1), VOCABULARY), "tokens: token 29 given; the vocabulary has 29 entries, 0 to 28"),
        (torch.zeros(3, 1, dtype=torch.int64), r"tokens: 3 rows given to a cache of 2; .*cache.select"),
    ],
)
def test_extend_refuses_wrong_tokens_and_keeps_the_cache(tokens, message):
    model = make()
    cache = model.new_cache()
    start, next_ = torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 1, dtype=torch.int64)
    model.extend(start, cache)
    with pytest.raises(InvalidShapeError, match=message):
        model.extend(tokens, cache)
    with torch.no_grad():
        torch.testing.assert_close(
            model.extend(next_, cache), model(torch.ones(2, 6, dtype=torch.int64))[:, 5:], rtol=1e-9, atol=1e-11
        )
