"""What annotations and docstrings become."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
from annotated_types import Ge, Le, MinLen

from retroflow.options.annotations import descriptions, option_type, parameters
from retroflow.options.types import (
    REQUIRED,
    Anything,
    Block,
    Choice,
    Either,
    Fixed,
    Limits,
    Listed,
    Mapped,
    Option,
    Scalar,
    writable,
)


@dataclass
class Leaf:
    """A leaf.

    Attributes:
        length: in centimetres; a second line
            goes on here.
        veins, spots: how many.

    Raises:
        Nothing: that is an option.
    """

    length: Annotated[float, Ge(0)]
    veins: int = 2
    spots: int = 0


@dataclass
class Blade(Leaf):
    """A long leaf.

    Attributes:
        length: much longer.
    """

    length: Annotated[float, Ge(0)] = 9.0


@pytest.mark.parametrize(
    ("annotation", "found"),
    [
        (Annotated[Annotated[int, Ge(1)], "words", Le(3)], Scalar("int", Limits(ge=1, le=3))),
        (Annotated[list[int], MinLen(1)] | None, Either((Listed(Scalar("int"), Limits(min_length=1)), Scalar("None")))),
        (Optional[Literal["a", 2]], Either((Choice(("a", 2)), Scalar("None")))),  # noqa: UP045
        (tuple[int, ...], Listed(Scalar("int"))),
        (tuple[int, str], Fixed((Scalar("int"), Scalar("str")))),
        (Sequence[bool], Listed(Scalar("bool"))),
        (Mapping[str, float], Mapped(Scalar("float"))),
        (dict[int, float], Anything()),
        (str | Path, Either((Scalar("str"), Anything()))),
        (Any, Anything()),
        (list, Anything()),
    ],
)
def test_an_annotation_becomes_a_type(annotation: Any, found: object) -> None:
    assert option_type(annotation, lambda _: None) == found


def test_what_a_recipe_can_write_of_a_type() -> None:
    text, none = Scalar("str"), Scalar("None")
    assert writable(Either((text, Anything(), none))) == Either((text, none))
    assert writable(Either((text, Anything()))) == text
    assert writable(Either((Anything(), none))) is None
    assert writable(Listed(Either((text, Anything())))) == Listed(text)
    assert writable(Listed(Anything())) is writable(Mapped(Anything())) is writable(Fixed((text, Anything()))) is None


def test_parameters_have_defaults_and_descriptions_those_of_a_base_class_included() -> None:
    length = Scalar("float", Limits(ge=0))
    assert parameters(Leaf) == Block(
        {"length": Option(length), "veins": Option(Scalar("int"), 2), "spots": Option(Scalar("int"), 0)}
    )
    assert parameters(Leaf).options["length"].default is REQUIRED
    assert [option.description for option in parameters(Blade).options.values()] == [
        "much longer.",
        "how many.",
        "how many.",
    ]


def test_variable_parameters_are_no_options() -> None:
    def make(*words: int, size: Annotated[int, Ge(1)] = 1, **more: int) -> None: ...

    assert list(parameters(make).options) == ["size"]


def test_descriptions_are_read_from_the_sections_of_arguments_alone() -> None:
    assert descriptions(Leaf.__doc__) == {
        "length": "in centimetres; a second line goes on here.",
        "veins": "how many.",
        "spots": "how many.",
    }
    assert descriptions(None, "No arguments.") == {}
