"""What a RETRO-fit is given: the same rules, and the same messages, as a Retro."""

import pytest
import torch

from retroflow.errors import InvalidShapeError, UsageError
from retroflow.model.cache import RetroCache
from tests.pretrained.bases import VOCABULARY, make_batch, make_options, make_retrofit

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda targets: targets[:, :-1], r"targets: int64 \[2, 13\], one for each token, is needed"),
        (lambda targets: targets.float(), "torch.float32"),
        (lambda targets: targets + VOCABULARY, r"targets: token \d+ given; the vocabulary has"),
    ],
)
def test_wrong_targets_are_refused(change, message):
    model = make_retrofit()
    tokens, retrieved, mask = make_batch()
    with pytest.raises(InvalidShapeError, match=message):
        model.loss(tokens, change(tokens), retrieved, mask)


def test_a_batch_without_rows_is_refused():
    model = make_retrofit()
    tokens, retrieved, mask = (x[:0] for x in make_batch())
    for call in (lambda: model(tokens, retrieved, mask), lambda: model.extend(tokens, model.new_cache())):
        with pytest.raises(InvalidShapeError, match=r"tokens: \[0, 13\] given; a base needs at least one row"):
            call()


def test_a_cache_of_another_model_is_refused():
    model = make_retrofit()
    tokens, _, _ = make_batch()
    for other in (None, RetroCache(4, chunk_length=4, step=4, padding=None)):
        with pytest.raises(
            InvalidShapeError, match="cache: .* given; one that `new_cache` of this model made is needed"
        ):
            model.extend(tokens, other)


def test_rows_that_are_not_those_of_the_cache_are_refused():
    model = make_retrofit()
    tokens, _, _ = make_batch()
    cache = model.new_cache()
    model.extend(tokens, cache)
    with pytest.raises(InvalidShapeError, match="tokens: 1 rows given to a cache of 2"):
        model.extend(tokens[:1], cache)
    cache.select(torch.tensor([1]))
    assert model.extend(tokens[:1], cache).shape[0] == 1


def test_rows_can_be_selected_before_there_are_any_tokens():
    model = make_retrofit()
    tokens, _, _ = make_batch()
    cache = model.new_cache(padding=torch.tensor([0, 3]))
    cache.select(torch.tensor([1]))
    with torch.no_grad():
        wanted = model(tokens[1:], padding=torch.tensor([3]))
    torch.testing.assert_close(model.extend(tokens[1:], cache)[:, 3:], wanted[:, 3:], rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_a_missing_token_is_not_even_before_another():
    model = make_retrofit(smear=True)
    tokens, retrieved, _ = make_batch()
    mask = torch.rand(retrieved.shape, generator=torch.Generator().manual_seed(0)) >= 0.4
    other = torch.where(mask, retrieved, (retrieved + 1) % VOCABULARY)
    torch.testing.assert_close(model(tokens, other, mask), model(tokens, retrieved, mask), rtol=0, atol=0)


def test_heads_of_cca_are_judged_by_the_base_s_width_not_by_a_stand_in():
    make_options(cca_heads=12)  # fits bases of width 768, whatever 64 divides
    with pytest.raises(UsageError, match=r"model\.cca_heads is 5, which does not divide model\.width"):
        make_retrofit(cca_heads=5)
