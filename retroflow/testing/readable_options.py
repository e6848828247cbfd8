"""Options as a recipe sees them, which reads them from source, against those that the class has."""

import dataclasses
import inspect
import typing
from typing import Any

from retroflow.errors import BrokenPluginError
from retroflow.options.types import Block, Either
from retroflow.recipe.signatures import read_block


def check_keyword_only(component: type) -> None:
    """Assert that __init__ takes named options by keyword only."""
    parameters = inspect.signature(component).parameters.values()
    wrong = [each.name for each in parameters if each.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert not wrong, f"__init__ must take options by keyword only, as recipes give them (put a * before {wrong})"


def check_readable(component: type) -> None:
    """Assert that a recipe can set every parameter of __init__, those of dataclasses among them included.

    A parameter whose name begins with an underscore is no option: a client that a test injects.
    """
    try:
        block = read_block(f"{component.__module__}:{component.__qualname__}", "the component under test")
    except BrokenPluginError as error:
        raise AssertionError(str(error)) from None
    unread = _unread(component, block, "")
    assert not unread, (
        f"recipes cannot set {', '.join(unread)}: an option needs an annotation (int, float, str, bool, Literal, a "
        "list or a dataclass of these) and a constant as default; what is no option has a name that begins with _"
    )


def _unread(component: Any, block: Block, prefix: str) -> list[str]:
    """Name the parameters of a class that its block lacks, those of dataclasses among them included."""
    hints = _hints(component)
    unread = []
    for name in inspect.signature(component).parameters:
        if name.startswith("_"):
            continue
        if name not in block.options:
            unread.append(prefix + name)
            continue
        for nested in _dataclasses_in(hints.get(name)):
            inner = _block_in(block.options[name].type)
            unread += _unread(nested, inner, f"{prefix}{name}.") if inner is not None else [prefix + name]
    return unread


def _hints(component: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(component if dataclasses.is_dataclass(component) else component.__init__)
    except Exception:  # an annotation that only exists for type checkers
        return {}


def _dataclasses_in(annotation: Any) -> list[Any]:
    found = [annotation] if isinstance(annotation, type) and dataclasses.is_dataclass(annotation) else []
    return found + [each for argument in typing.get_args(annotation) for each in _dataclasses_in(argument)]


def _block_in(option_type: object) -> Block | None:
    arms = option_type.arms if isinstance(option_type, Either) else (option_type,)
    return next((arm for arm in arms if isinstance(arm, Block)), None)
