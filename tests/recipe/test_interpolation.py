import pytest

from retroflow.errors import UsageError
from tests.recipe.parts import Load

OAK = "recipe_version: 1\ntree: {name: oak, leaves: 3}\n"


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("run.steps=${tree.leaves}", "run", "steps", 3),
        ("run.steps=${tree.depth}", "run", "steps", 3),  # a default
        ("run.folder=a-${tree.leaves}-${seed}", "run", "folder", "a-3-1"),
        ("run.layers=${run.many}", "run", "layers", [4, 5]),
        ("run.steps=${run.many[1]}", "run", "steps", 5),
        ("run.layers=['${seed}', 2]", "run", "layers", [1, 2]),
        ("run.rate=${seed}", "run", "rate", 1.0),
    ],
)
def test_a_reference_takes_the_value_of_another_key(
    load_text: Load, override: str, section: str, key: str, value: object
) -> None:
    recipe = load_text(OAK, override)
    assert recipe.values[section][key] == value
    assert recipe.origins[f"{section}.{key}"] == "command line"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.steps=${tree.leavs}", 'run.steps refers to "tree.leavs", which the recipe does not have. Did you mean'),
        ("run.folder=${oc.env:HOME}", "the only form of a reference is ${section.key}"),
        ("run.folder=${oc.${seed}:x}", "the only form of a reference is ${section.key}"),
        ("run.folder=${", "the only form of a reference is ${section.key}"),
        ("run.folder=${}", "the only form of a reference is ${section.key}"),
        ("run.folder=${run.folder}", "refers to itself"),
        ("run.folder=x${run}", "refers to itself"),
        ("run.steps=${run.folder}", 'run.steps is "runs" (text); allowed: a whole number.'),
        ("run.steps=${tree}", "run.steps is a mapping; allowed: a whole number."),
        ("tree.name=${run.folder}", 'There is no tree "${run.folder}"'),
        ("run.steps=${run.many[9]}", "which the recipe does not have"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused(load_text: Load, override: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        load_text(OAK, override)
    assert message in str(raised.value)


def test_two_values_that_refer_to_each_other_are_both_named(load_text: Load) -> None:
    with pytest.raises(UsageError, match="has 2 errors") as raised:
        load_text(OAK, "run.steps=${run.rate}", "run.rate=${run.steps}")
    assert str(raised.value).count("refers to itself") == 2


def test_references_cannot_grow_without_end(load_text: Load) -> None:
    levels = [
        f"w{i}: '{'${tree.weights.w' + str(i - 1) + '}'}{'${tree.weights.w' + str(i - 1) + '}'}'" for i in range(1, 40)
    ]
    text = "recipe_version: 1\ntree:\n  name: elm\n  path: x\n  weights:\n    w0: haha\n" + "".join(
        f"    {level}\n" for level in levels
    )
    with pytest.raises(UsageError, match="grow to more than|leads through more than"):
        load_text(text)
