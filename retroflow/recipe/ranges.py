"""Refuse values that their annotation does not allow, where a component is made in Python.

`Annotated[int, Ge(1)]` (annotated-types) says a range once. `recipe check` reads it from source (`signatures`); here
it is read from the object, for the same check with the same sentence.
"""

import functools
import inspect
import numbers
import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge

from retroflow.errors import UsageError
from retroflow.recipe.checking import ValueCheck
from retroflow.recipe.option_types import (
    UNLIMITED,
    Choice,
    Either,
    Fixed,
    Listed,
    Mapped,
    OptionType,
    Scalar,
    limited,
)
from retroflow.recipe.problems import DEFAULT, Problems
from retroflow.recipe.tree import plant

Seed = Annotated[int, Ge(0)]
"""A seed of numpy and torch; like every whole number of a recipe it is below 2**63."""

_SCALARS = {int: "int", float: "float", str: "str", bool: "bool", type(None): "None"}

Component = TypeVar("Component", bound=type)


def check_ranges(values: Mapping[str, Any], hints: Mapping[str, Any], *, key: str) -> None:
    """Check values against the ranges and choices in their annotations.

    Args:
        values: by the name of the parameter; those without a range or choice are passed over.
        hints: annotations by name, with what `Annotated` adds.
        key: what the names are part of in a recipe, such as "retriever.search".

    Raises:
        UsageError: values out of range, a line for each.
    """
    problems = Problems()
    check = ValueCheck(problems, [], frozenset())
    for name, value in values.items():
        option_type = _option_type(hints.get(name))
        if option_type is not None and _has_limits(option_type):
            check.check(plant(_plain(value), DEFAULT), option_type, f"{key}.{name}" if key else name)
    if problems.found:
        raise UsageError("\n".join(f"{problem.key} {problem.text}" for problem in problems.found))


def within_ranges(key: str) -> Callable[[Component], Component]:
    """Let a class refuse arguments of `__init__` that its annotations do not allow: out of range, or no choice.

    Args:
        key: what the options are called in a recipe: "retriever.search" for those of `retriever.search.nprobe`.
    """

    def decorate(component: Component) -> Component:
        made: Any = component.__init__  # type: ignore[misc]
        signature = inspect.signature(made)

        @functools.wraps(made)
        def _checked(self: Any, *args: Any, **words: Any) -> None:
            hints = typing.get_type_hints(made, include_extras=True)
            check_ranges(signature.bind(self, *args, **words).arguments, hints, key=key)
            made(self, *args, **words)

        component.__init__ = _checked  # type: ignore[misc]
        return component

    return decorate


def _option_type(hint: Any) -> OptionType | None:
    """Return what an annotation allows, None if it is not of values that a recipe can hold."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner = _option_type(arguments[0])
        return inner and limited(inner, arguments[1:])
    if origin is Literal:
        return Choice(arguments)
    if origin in (typing.Union, types.UnionType):
        arms = [_option_type(arm) for arm in arguments]
        known_arms = tuple(arm for arm in arms if arm is not None)
        return Either(known_arms) if len(known_arms) == len(arms) else None
    if origin in (list, tuple, Sequence):
        items = [_option_type(item) for item in arguments if item is not ...]
        known = tuple(item for item in items if item is not None)
        if not known or len(known) != len(items):
            return None
        return Fixed(known) if origin is tuple and arguments[-1] is not ... else Listed(known[0])
    if origin in (dict, Mapping) and arguments[0] is str:
        value = _option_type(arguments[1])
        return value and Mapped(value)
    return Scalar(_SCALARS[hint]) if isinstance(hint, type) and hint in _SCALARS else None


def _has_limits(option_type: OptionType) -> bool:
    if isinstance(option_type, Either):
        return any(map(_has_limits, option_type.arms))
    if isinstance(option_type, Fixed):
        return any(map(_has_limits, option_type.items))
    if isinstance(option_type, Mapped):
        return _has_limits(option_type.value)
    if isinstance(option_type, Listed):
        return option_type.limits != UNLIMITED or _has_limits(option_type.item)
    return isinstance(option_type, Choice) or (isinstance(option_type, Scalar) and option_type.limits != UNLIMITED)


def _plain(value: Any) -> Any:
    """Return numpy's numbers as Python's."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, numbers.Integral):
        return operator.index(value)
    return float(value) if isinstance(value, numbers.Real) else value
