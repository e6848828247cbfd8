"""Interpret annotations: the one place where `Annotated[int, Ge(1)]` becomes a type with a range.

It is called with the annotations of a class (`parameters`) and with those that `recipe/signatures.py` has read from
source, so a recipe, Python and JSON files have one opinion of what is allowed.
"""

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from retroflow.options.types import (
    REQUIRED,
    Anything,
    Block,
    Choice,
    Either,
    Fixed,
    Listed,
    Mapped,
    Option,
    OptionType,
    Scalar,
    limited,
)

_SCALARS = {int: "int", float: "float", str: "str", bool: "bool", types.NoneType: "None"}
_SECTION = re.compile(r"^(?:Args|Attributes):\n((?:[ ]+\S.*\n?|[ ]*\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): (\S.*(?:\n {5,}\S.*)*)", re.MULTILINE)


def option_type(annotation: Any, block_of: Callable[[Any], Block | None]) -> OptionType:
    """Return what an annotation allows.

    Args:
        annotation: as `typing.get_type_hints` returns it, with what `Annotated` adds.
        block_of: returns the options of a dataclass, None for any other annotation that is not generic.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return Choice(arguments)
    if origin is Annotated:
        return limited(option_type(arguments[0], block_of), arguments[1:])
    inner = [option_type(argument, block_of) for argument in arguments if argument is not ...]
    if origin in (Union, types.UnionType):
        return Either(tuple(inner))
    if origin is tuple and inner and arguments[-1] is not ...:
        return Fixed(tuple(inner))
    if origin in (list, tuple, Sequence) and inner:
        return Listed(inner[0], container=tuple if origin is tuple else list)
    if origin in (dict, Mapping) and inner[0] == Scalar("str"):
        return Mapped(inner[1])
    if isinstance(annotation, InitVar):
        return option_type(annotation.type, block_of)
    if isinstance(annotation, type) and annotation in _SCALARS:
        return Scalar(_SCALARS[annotation])
    return block_of(annotation) or Anything()


@functools.cache
def parameters(component: Callable[..., Any]) -> Block:
    """Return the options of a class or function: its parameters, with their docstring's descriptions."""
    annotated = component.__init__ if inspect.isclass(component) else component
    hints = typing.get_type_hints(annotated, include_extras=True)
    documented = reversed(component.__mro__) if inspect.isclass(component) else (component,)
    about = descriptions(*[each.__doc__ for each in documented])
    options = {}
    for name, parameter in inspect.signature(component).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        options[name] = Option(option_type(hints.get(name), _dataclass_block), default, about.get(name, ""))
    return Block(options)


def _dataclass_block(annotation: Any) -> Block | None:
    if isinstance(annotation, type) and is_dataclass(annotation):
        return Block(parameters(annotation).options, annotation)
    return None


def descriptions(*docstrings: str | None) -> dict[str, str]:
    """Return what docstrings say about each of their `Args` or `Attributes`; a later docstring wins."""
    found: dict[str, str] = {}
    for docstring in docstrings:
        for section in _SECTION.findall(inspect.cleandoc(docstring or "")):
            for names, text in _ENTRY.findall(section):
                found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found
