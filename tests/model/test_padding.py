"""Padding at the left changes nothing: not where it is, not what is in it, not how much there is of it."""

import dataclasses

import pytest
import torch
from hypothesis import given

from retroflow.errors import InvalidShapeError
from tests.model.random_models import VARIANTS, cases, changed, inputs, make, settings_for


def has_text(case):
    """bool [b, W, 1, 1], False for windows that are padding alone."""
    ends = torch.tensor([case.window_end(w) for w in range(case.retrieved.shape[1])], dtype=torch.int64)
    return (ends > case.padding[:, None])[..., None, None]


def shifted(case, row, extra):
    """One row of a case with `extra` more padding; windows that it has only by that have no neighbours."""
    m, step = case.chunk_length, case.step
    padding = (0 if case.padding is None else int(case.padding[row])) + extra
    filler = torch.randint(case.model.config.vocabulary_size, (1, extra))
    more = extra // step
    retrieved, mask = case.retrieved[row : row + 1], case.mask[row : row + 1]
    if not retrieved.shape[1]:  # the row is shorter than a chunk; with more padding before it, windows end in it
        count = max(0, (case.tokens.shape[1] + extra - m) // step + 1)
        retrieved = retrieved.new_zeros(1, count, *retrieved.shape[2:])
        mask = retrieved.bool()
    else:
        retrieved = torch.cat((retrieved[:, :1].expand(-1, more, -1, -1), retrieved), dim=1)
        mask = torch.cat((torch.zeros_like(mask[:, :1]).expand(-1, more, -1, -1), mask), dim=1)
    return dataclasses.replace(
        case,
        tokens=torch.cat((filler, case.tokens[row : row + 1]), dim=1),
        retrieved=retrieved,
        mask=mask,
        padding=torch.tensor([padding]),
    )


@settings_for(100)
@given(case=cases())
def test_more_padding_changes_nothing(case):
    expected, real = case.whole(), case.real
    for row in range(len(case.tokens)):
        extra = case.step * case.random.randint(1, 4)
        padded = shifted(case, row, extra)
        for logits in (padded.whole(), padded.cached()):
            torch.testing.assert_close(logits[0, extra:][real[row]], expected[row][real[row]], rtol=1e-9, atol=1e-11)


@settings_for(100)
@given(case=cases(rows=3, paper_step=True, padded=True))
def test_a_row_of_a_ragged_batch_equals_that_row_with_its_own_least_padding(case):
    m = case.chunk_length
    together = {"whole": case.whole(), "cached": case.cached()}
    for row in range(3):
        padding = int(case.padding[row])
        chunks = padding // m  # whole chunks of padding, which the row has from the others' length alone
        alone = dataclasses.replace(
            case,
            tokens=case.tokens[row : row + 1, chunks * m :],
            retrieved=case.retrieved[row : row + 1, chunks:],
            mask=case.mask[row : row + 1, chunks:],
            padding=torch.tensor([padding % m]),
        )
        for logits in together.values():
            for own in (alone.whole(), alone.cached()):
                torch.testing.assert_close(logits[row, padding:], own[0, padding % m :], rtol=1e-9, atol=1e-11)


@settings_for(60)
@given(case=cases(padded=True))
def test_what_is_in_the_padding_does_not_matter(case):
    other = torch.where(case.real, case.tokens, changed(case.tokens))
    retrieved = torch.where(has_text(case), case.retrieved, changed(case.retrieved))
    for read in (case.whole, case.cached):
        lengths = {} if read == case.whole else {"lengths": case.cuts()}
        torch.testing.assert_close(
            read(tokens=other, retrieved=retrieved, **lengths)[case.real], read(**lengths)[case.real], rtol=0, atol=0
        )


@settings_for(60)
@given(case=cases(padded=True))
def test_windows_of_padding_alone_have_no_neighbours(case):
    mask = case.mask & has_text(case)
    for read in (case.whole, case.cached):
        torch.testing.assert_close(read(mask=mask)[case.real], read()[case.real], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_padding_equals_padding_of_zero(variant):
    model = make(**VARIANTS[variant])
    tokens, retrieved, mask = inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens, retrieved, mask, padding=torch.zeros(2, dtype=torch.int64)),
            model(tokens, retrieved, mask),
            rtol=1e-10,
            atol=1e-12,
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_of_padding_is_zero_and_all_others_are_finite(variant):
    model = make(**VARIANTS[variant])
    tokens, retrieved, mask = inputs(model)
    seen = []

    def see(module, args, out):
        out.retain_grad()
        seen.append(out)

    model.embedding.register_forward_hook(see)
    padding = torch.tensor([0, 6])
    logits = model(tokens, retrieved, mask, padding=padding)
    real = torch.arange(14) >= padding[:, None]
    logits[real].square().sum().backward()
    gradient = seen[0].grad.abs().sum(-1)
    assert (gradient > 0).equal(real)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("padding", "message"),
    [
        (torch.tensor([1]), r"padding: int64 \[2\], one number a row, is needed, torch.int64 \[1\] given"),
        (torch.tensor([[1], [2]]), r"\[2, 1\] given"),
        (torch.tensor([1.0, 2.0]), "torch.float32"),
        (torch.tensor([True, False]), "torch.bool"),
        (torch.tensor([0, -1]), r"padding: \[0, -1\] given; 0 or more is needed, less than the 14 tokens"),
        (torch.tensor([14, 0]), r"padding: \[14, 0\] given; .* every row needs at least one token"),
    ],
)
def test_wrong_padding_is_refused(padding, message):
    model = make()
    tokens, retrieved, mask = inputs(model)
    with pytest.raises(InvalidShapeError, match=message):
        model(tokens, retrieved, mask, padding=padding)


@pytest.mark.parametrize("padding", [torch.tensor([1]), torch.tensor([1.0, 2.0]), torch.tensor([0, -1])])
def test_wrong_padding_of_a_cache_is_refused(padding):
    model = make()
    with pytest.raises(InvalidShapeError, match="padding: "):
        model.extend(torch.zeros(2, 3, dtype=torch.int64), model.new_cache(padding=padding))
