"""The fields of a configuration hold what their annotations say, from Python and from JSON alike.

A recipe's values are checked before a configuration is made of them; these checks are for those who write
`RetroConfig(...)` or `GenerationOptions(...)` themselves, and for config.json.
"""

import dataclasses
import json
import math
import operator
import types
import typing
from typing import Any, Literal

_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}


def types_of(config_class: type) -> dict[str, Any]:
    """The annotation of each field of a dataclass."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def fit_fields(config: Any, *, where: str) -> list[str]:
    """Bring the fields of a frozen dataclass, which has just been made, to the types of their annotations.

    Args:
        config: the dataclass, changed in place.
        where: what stands before a field's name in a message.

    Returns:
        What does not fit, a line for each field: name, given, allowed. Empty if everything does.
    """
    problems = []
    for name, hint in types_of(type(config)).items():
        value = getattr(config, name)
        try:
            object.__setattr__(config, name, fitted(value, hint))
        except TypeError:
            problems.append(f"{where}{name}: {value!r} given; {described(hint)} is needed")
    return problems


def fitted(value: Any, hint: Any) -> Any:
    """Return a value as the annotation has it: a list as a tuple, a whole number as a float where one is wanted.

    Raises:
        TypeError: it is something else.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for arm in arguments:
            try:
                return fitted(value, arm)
            except TypeError:
                continue
        raise TypeError
    if origin is Literal:
        if any(type(value) is type(allowed) and value == allowed for allowed in arguments):
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(fitted(item, arguments[0]) for item in value)
    elif hint is int:
        if not isinstance(value, bool):
            return operator.index(value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif type(value) is hint:
        return value
    raise TypeError


def described(hint: Any) -> str:
    """Say in words what an annotation allows."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(described(arm) for arm in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(json.dumps, arguments))
    if origin is tuple:
        return f"a list, each item {described(arguments[0])},"
    return _WORDS.get(hint, str(hint))
