"""Turn a checked block of plain values into a call of the component: nested mappings become dataclasses."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Union, get_args, get_origin

from retroflow.errors import UsageError
from retroflow.recipe.ranges import check_ranges


def bind(component: Callable[..., Any], options: Mapping[str, Any], *, where: str, key: str = "") -> Any:
    """Call component with options as keyword arguments.

    Args:
        component: a class or a function with annotated parameters.
        options: plain values; a mapping is turned into a dataclass and a list into a tuple where the annotation
            of the parameter says so.
        where: what a message calls the component.
        key: what the options are part of in a recipe.

    Raises:
        UsageError: an option without a parameter, a parameter without default that no option fills, or a value out
            of the range of its annotation.
    """
    parameters = inspect.signature(component).parameters
    unknown = [key for key in options if key not in parameters]
    if unknown:
        raise UsageError(f"{where} has no option {_quoted(unknown)}. Its options: {', '.join(parameters)}.")
    needed = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and key not in options
    ]
    if needed:
        raise UsageError(f"{where} needs a value for {_quoted(needed)}.")
    annotated = component.__init__ if inspect.isclass(component) else component
    check_ranges(options, typing.get_type_hints(annotated, include_extras=True), key=key)
    hints = typing.get_type_hints(annotated)
    return component(**{name: _fit(value, hints.get(name), _joined(key, name)) for name, value in options.items()})


def _joined(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _fit(value: Any, annotation: Any, key: str) -> Any:
    """Return value in the form that annotation asks for; plain values pass through."""
    if isinstance(value, list):
        arms = [get_origin(arm) or arm for arm in _arms(annotation)]
        return tuple(value) if tuple in arms and list not in arms else value
    if isinstance(value, dict):
        for arm in _arms(annotation):
            if dataclasses.is_dataclass(arm) and isinstance(arm, type):
                return bind(arm, value, where=arm.__name__, key=key)
    return value


def _arms(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def _quoted(keys: list[str]) -> str:
    return ", ".join(f'"{key}"' for key in keys)
