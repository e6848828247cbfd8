"""Values in their final form, and the one sentence about each that does not fit."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Ge

from retroflow.errors import UsageError
from retroflow.options import bind, checked_options
from retroflow.options.annotations import option_type
from retroflow.options.fitting import Fitting, describe, hint, sentences
from retroflow.options.types import BROKEN


def fit(value: Any, annotation: Any) -> tuple[Any, list[str]]:
    fitting = Fitting()
    fitted = fitting.fit(value, option_type(annotation, lambda _: None), ("key",))
    return fitted, sentences(fitting.complaints, "owner")


@pytest.mark.parametrize(
    ("value", "annotation", "wanted"),
    [
        (3, float, 3.0),
        (np.int32(3), int, 3),
        (np.float32(0.5), float, 0.5),
        ([1, 2], tuple[int, ...], (1, 2)),
        ((1, 2), list[int], [1, 2]),
        ([1, "a"], tuple[int, str], (1, "a")),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        (-1, Annotated[int, Ge(0)] | int, -1),
        (None, int | None, None),
    ],
)
def test_a_value_takes_the_form_of_its_annotation(value: Any, annotation: Any, wanted: Any) -> None:
    fitted, complaints = fit(value, annotation)
    assert not complaints
    assert (fitted, type(fitted)) == (wanted, type(wanted))


@pytest.mark.parametrize(
    ("value", "annotation", "sentence"),
    [
        ("12", int, 'owner.key is "12" (text); allowed: a whole number. Remove the quotes.'),
        (12, str, 'owner.key is 12 (a whole number); allowed: text. Write it in quotes: "12".'),
        (12, list[int], "owner.key is 12 (a whole number); allowed: a list, each item a whole number. Write [12]."),
        ("hig", Literal["high", "low"], 'owner.key is "hig" (text); allowed: "high" or "low". Did you mean "high"?'),
        (1, bool, "owner.key is 1 (a whole number); allowed: true or false."),
        (True, int, "owner.key is true (a truth value); allowed: a whole number."),
        ({}, int, "owner.key is a mapping; allowed: a whole number."),
        (3 + 1j, int, "owner.key is (3+1j) (of type complex); allowed: a whole number."),
        (10**400, float, "owner.key is "),
        ([0, 1], tuple[int, str], "owner.key[1] is 1 (a whole number); allowed: text. "),
    ],
)
def test_a_complaint_says_what_was_given_what_is_allowed_and_what_to_write(
    value: Any, annotation: Any, sentence: str
) -> None:
    (complaint,) = fit(value, annotation)[1]
    assert complaint.startswith(sentence)


def test_what_is_wrong_is_broken_and_the_rest_is_kept() -> None:
    assert fit([1, "x", 3], list[int])[0] == [1, BROKEN, 3]
    assert fit({"a": "x"}, dict[str, int])[0] == {"a": BROKEN}


def test_a_placeholder_must_be_given_even_where_text_is_allowed() -> None:
    fitting = Fitting(placeholder="???")
    assert fitting.fit("???", option_type(str, lambda _: None)) is BROKEN
    assert fitting.complaints[0].text == "is ???: it must be given. Allowed: text."
    assert fit("???", str)[0] == "???"


def test_a_hint_for_a_shell_keeps_the_quotes_from_it() -> None:
    fitting = Fitting()
    fitting.fit(12, option_type(str, lambda _: None), ("run", "name"))
    assert hint(fitting.complaints[0], "run.name", in_shell=True) == " Write run.name='\"12\"'."


@checked_options("tree.leaf")
@dataclass(frozen=True, kw_only=True)
class Leaf:
    veins: Annotated[int, Ge(1)] = 1
    spots: tuple[int, ...] = ()


@checked_options("tree")
class Tree:
    def __init__(self, *, leaf: Leaf | None = None) -> None:
        self.leaf = leaf


def test_nested_mappings_become_their_dataclass() -> None:
    assert bind(Tree, {"leaf": {"veins": 2, "spots": [1]}}, where="tree", owner="tree").leaf == Leaf(
        veins=2, spots=(1,)
    )
    assert Tree(leaf=Leaf()).leaf == Leaf()
    with pytest.raises(
        UsageError, match=r'^tree.leaf.vains is not a known key. Did you mean "veins"\? Known: veins, spots.$'
    ):
        bind(Tree, {"leaf": {"vains": 2}}, where="tree", owner="tree")
    for make in (lambda: bind(Tree, {"leaf": {"veins": 0}}, where="tree", owner="tree"), lambda: Leaf(veins=0)):
        with pytest.raises(UsageError, match=r"^tree.leaf.veins is 0; allowed: a whole number of at least 1.$"):
            make()


def test_python_says_itself_that_an_argument_is_missing_or_unknown() -> None:
    with pytest.raises(TypeError, match="vains"):
        Leaf(vains=1)  # type: ignore[call-arg]


def test_long_text_is_cut() -> None:
    assert describe("x" * 100) == f'"{"x" * 57}..." (text)'
