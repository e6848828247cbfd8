"""Turn a checked block of plain values into a call of the component: nested mappings become dataclasses."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Union, get_args, get_origin

from retroflow.errors import RecipeError


def bind(component: Callable[..., Any], options: Mapping[str, Any], *, where: str) -> Any:
    """Call component with options as keyword arguments.

    Args:
        component: a class or a function with annotated parameters.
        options: plain values; a mapping is turned into a dataclass and a list into a tuple where the annotation
            of the parameter says so.
        where: what a message calls the component.

    Raises:
        RecipeError: an option without a parameter, or a parameter without default that no option fills.
    """
    parameters = inspect.signature(component).parameters
    unknown = [key for key in options if key not in parameters]
    if unknown:
        raise RecipeError(f"{where} has no option {_quoted(unknown)}. Its options: {', '.join(parameters)}.")
    needed = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and key not in options
    ]
    if needed:
        raise RecipeError(f"{where} needs a value for {_quoted(needed)}.")
    hints = _hints(component)
    return component(**{key: _fit(value, hints.get(key)) for key, value in options.items()})


def _hints(component: Callable[..., Any]) -> dict[str, Any]:
    annotated = component.__init__ if inspect.isclass(component) else component
    return typing.get_type_hints(annotated)


def _fit(value: Any, annotation: Any) -> Any:
    """Return value in the form that annotation asks for; plain values pass through."""
    if isinstance(value, list):
        arms = [get_origin(arm) or arm for arm in _arms(annotation)]
        return tuple(value) if tuple in arms and list not in arms else value
    if isinstance(value, dict):
        for arm in _arms(annotation):
            if dataclasses.is_dataclass(arm) and isinstance(arm, type):
                return bind(arm, value, where=arm.__name__)
    return value


def _arms(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def _quoted(keys: list[str]) -> str:
    return ", ".join(f'"{key}"' for key in keys)
