"""A base brings its tokenizer; whatever contradicts it is refused with a remedy."""

import pytest

from retroflow.corpus.tokenizer import load_tokenizer, train_tokenizer
from retroflow.errors import UsageError
from retroflow.pipeline.given_tokenizer import given_tokenizer
from retroflow.pipeline.options import DataOptions
from retroflow.pipeline.prepare import prepare
from retroflow.recipe import Recipe
from tests.pipeline.recipes import small_recipe


@pytest.fixture
def base(tmp_path):
    return str(save(tmp_path / "base", "some text of the base"))


def save(folder, text):
    folder.mkdir()
    train_tokenizer([text], 270).save(folder)
    return folder


def recipe_of(**model):
    return Recipe({"model": model}, {}, "recipe.yaml")


def test_without_a_base_one_is_trained_or_the_named_one_is_loaded(base):
    for recipe in (recipe_of(name="retro"), Recipe({}, {}, "recipe.yaml")):
        assert given_tokenizer(recipe, DataOptions()) is None
        assert given_tokenizer(recipe, DataOptions(tokenizer="train")) is None
        found = given_tokenizer(recipe, DataOptions(tokenizer=base))
        assert found.fingerprint() == load_tokenizer(base).fingerprint()


def test_a_base_brings_its_own(base):
    found = given_tokenizer(recipe_of(name="retrofit", base=base), DataOptions())
    assert found.fingerprint() == load_tokenizer(base).fingerprint()


def test_the_same_tokenizer_under_another_name_is_no_contradiction(base, tmp_path):
    same = save(tmp_path / "same", "some text of the base")
    found = given_tokenizer(recipe_of(name="retrofit", base=base), DataOptions(tokenizer=str(same)))
    assert found.fingerprint() == load_tokenizer(base).fingerprint()


def test_another_tokenizer_is_refused(base, tmp_path):
    other = save(tmp_path / "other", "quite other words")
    with pytest.raises(UsageError, match=r'data\.tokenizer: ".*other" given.*not the tokenizer of model\.base.*Leave'):
        given_tokenizer(recipe_of(name="retrofit", base=base), DataOptions(tokenizer=str(other)))


def test_training_one_is_refused(base):
    with pytest.raises(UsageError, match=r'data\.tokenizer: "train" given, but model\.base.*Leave data\.tokenizer out'):
        given_tokenizer(recipe_of(name="retrofit", base=base), DataOptions(tokenizer="train"))


def test_a_base_without_a_tokenizer_needs_one_given(base, tmp_path):
    (tmp_path / "bare").mkdir()
    recipe = recipe_of(name="retrofit", base=str(tmp_path / "bare"))
    with pytest.raises(UsageError, match=r"model\.base.*has no tokenizer that can be loaded.*data\.tokenizer"):
        given_tokenizer(recipe, DataOptions())
    assert given_tokenizer(recipe, DataOptions(tokenizer=base)) is not None


def test_prepare_cuts_the_corpus_with_it(base, tmp_path):
    prepared = prepare(small_recipe(tmp_path, model={"name": "retrofit", "base": base}))
    assert load_tokenizer(str(prepared.tokenizer)).fingerprint() == load_tokenizer(base).fingerprint()
