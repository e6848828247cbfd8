import pytest

from retroflow.errors import UsageError
from tests.recipe.parts import Load

OAK = "recipe_version: 1\ntree: {name: oak, leaves: 3}\n"


def test_values_are_read_as_a_recipe_would_read_them(load_text: Load) -> None:
    words = ["run.steps=7", "run.rate=1e-2", "run.folder=a: b # c", "tree.tags=[a, 'b c']", "run.layers=[1]"]
    recipe = load_text(OAK, *words)
    assert recipe.values["run"] == {"steps": 7, "rate": 0.01, "folder": "a: b # c", "layers": [1], "many": [4, 5]}
    assert recipe.values["tree"]["tags"] == ["a", "b c"]


def test_a_glob_needs_no_quotes(load_text: Load) -> None:
    assert load_text(OAK, "tree.name=elm", "tree.path=*.txt").values["tree"]["path"] == "*.txt"


def test_a_value_may_contain_an_equals_sign(load_text: Load) -> None:
    assert load_text(OAK, "run.folder=a=b").values["run"]["folder"] == "a=b"


def test_a_whole_block_can_be_given(load_text: Load) -> None:
    recipe = load_text(OAK, "tree={name: elm, path: x}")
    assert recipe.values["tree"]["path"] == "x"
    assert "leaves" not in recipe.values["tree"]


def test_another_name_drops_the_old_options_and_keeps_overrides_in_any_order(load_text: Load) -> None:
    recipe = load_text(OAK, "tree.path=x", "tree.name=elm")
    assert recipe.values["tree"]["path"] == "x"
    assert "leaves" not in recipe.values["tree"]


def test_the_last_of_two_overrides_wins(load_text: Load) -> None:
    assert load_text(OAK, "seed=1", "seed=2").values["seed"] == 2


def test_null_is_a_value(load_text: Load) -> None:
    recipe = load_text(OAK, "tree={name: elm, path: x}", "tree.weights=null")
    assert recipe.values["tree"]["weights"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--run.steps", "5"],
            '"--run.steps" is not an option; values of a recipe are set without dashes: run.steps=5.',
        ),
        (["--run.steps=5"], "without dashes: run.steps=5."),
        (["--run.steps"], "without dashes: run.steps=VALUE."),
        (["--recip", "x=y"], 'there is no option "--recip"; --help lists the options.'),
        (["run.steps"], '"run.steps" is not an override; write KEY=VALUE'),
        (["run.steps", "=", "5"], '"run.steps =" is more than one word; write run.steps=VALUE without spaces.'),
        (["run.steps", "=5"], "without spaces."),
        (["tree=oak"], "Write tree.name=oak."),
        (["=3"], '"=3" is not an override'),
        (["run..steps=3"], '"run..steps" is not a key'),
        (["run.steps =3"], '"run.steps " is not a key. Did you mean "run.steps"? Write run.steps=3'),
        (["run.max-steps = 3"], '"run.max-steps " is not a key. Did you mean "run.max_steps"? Write run.max_steps=3'),
        (["run.layers.0=3"], '"run.layers.0" is not a key'),
        (["tree={name:"], "tree is {name:: this is not YAML"),
        (["tree={name:", "elm}"], "quote the whole word"),
        (["run={steps: 1, steps: 2}"], "command line: steps is given twice"),
        (["runn.steps=1"], 'runn is not a known key. Did you mean "run"?'),
        (["run.steps.x=1"], "run.steps is a mapping; allowed: a whole number."),
        (["run=5"], "run is 5 (a whole number); allowed: a mapping"),
        (["run.folder=12"], "Write run.folder='\"12\"'."),
        (["run.steps="], "run.steps is nothing (null)"),
        (["recipe_version=2"], "command line: recipe_version is 2"),
        (["extends=x.yaml"], "extends belongs in the recipe file"),
        (["run.steps=" + "9" * 5000], "allowed: a whole number"),
        (["seed=" + "[" * 3000], "nested too deeply"),
    ],
)
def test_a_wrong_override_is_refused_with_what_to_write(load_text: Load, words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        load_text(OAK, *words)
    assert message in str(raised.value)
    assert "command line" in str(raised.value)


def test_dashes_before_a_key_are_one_error_with_their_value(load_text: Load) -> None:
    for words in (["--run.steps", "5"], ["run.steps", "=", "5"], ["run.steps", "=5"]):
        with pytest.raises(UsageError) as raised:
            load_text(OAK, *words)
        assert "errors" not in str(raised.value)


def test_the_overrides_of_a_recipe_load_to_the_same_recipe_again(load_text: Load) -> None:
    words = ["run.steps=7", "run.rate=1e-2", "run.folder=a: b # c", "tree.tags=[a, 'b c']", "run.many=[1]", "seed=3"]
    recipe = load_text(OAK, *words)
    assert sorted(word.split("=")[0] for word in recipe.overrides()) == sorted(word.split("=")[0] for word in words)
    assert load_text(OAK, *recipe.overrides()).values == recipe.values


def test_text_that_looks_like_a_number_stays_text_in_the_overrides(load_text: Load) -> None:
    recipe = load_text(OAK, "run.folder='12'")
    assert load_text(OAK, *recipe.overrides()).values["run"]["folder"] == "12"


def test_values_of_the_file_are_no_overrides(load_text: Load) -> None:
    assert load_text(OAK).overrides() == []
