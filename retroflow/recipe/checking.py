"""Check a tree of values against the options they are meant for, and fill in defaults."""

import math
from collections.abc import Mapping
from typing import Any

from retroflow.recipe.option_types import (
    REQUIRED,
    Block,
    Choice,
    Either,
    Fixed,
    Listed,
    Mapped,
    Option,
    OptionType,
    Scalar,
)
from retroflow.recipe.problems import COMMAND_LINE, DEFAULT, Problems, nearest, suggest
from retroflow.recipe.tree import BROKEN, Node, plant
from retroflow.recipe.yaml_text import describe, parse_scalar

MISSING = "???"  # OmegaConf's sign for "whoever extends this recipe must give a value"

LARGEST = 2**63  # whole numbers are below it: no library takes larger ones, and most say so in the middle of a run

_PYTHON_TYPES: Mapping[str, type] = {"int": int, "float": float, "str": str, "bool": bool, "None": type(None)}


def complete(node: Node, option_type: OptionType) -> Node:
    """Return node with the defaults of absent options filled in, blocks inside it included."""
    block = _block_of(option_type)
    if block is None or not node.is_mapping:
        return node
    items: dict[str, Node] = {}
    for key, option in block.options.items():
        if key in node.value:
            items[key] = complete(node.value[key], option.type)
        elif option.default is not REQUIRED:
            items[key] = complete(plant(_default(option), DEFAULT), option.type)
    unknown = {key: child for key, child in node.value.items() if key not in items}
    return Node(items | unknown, node.origin)


def _default(option: Option) -> Any:
    """Return an option's default. For `build: Build | None = None`, null stands for the block's own defaults.

    They are written out, so that a stored recipe still says what a run did when a default changes.
    """
    block = _block_of(option.type)
    if option.default is None and block is not None:
        inner = [one.default for one in block.options.values()]
        return None if any(default is REQUIRED for default in inner) else {}
    return option.default


class ValueCheck:
    """Walks a completed tree; returns the values in their final form and notes what does not fit.

    Args:
        problems: where problems are noted.
        known_keys: every dotted key of the recipe, so that a key at the wrong level can be sent to the right one.
        derived: dotted keys that follow from other values and cannot be given.
    """

    def __init__(self, problems: Problems, known_keys: list[str], derived: frozenset[str]) -> None:
        self._problems = problems
        self._known_keys = known_keys
        self._derived = derived

    def check(self, node: Node, option_type: OptionType, key: str) -> Node:
        """Return node in the form that option_type asks for."""
        if node.value is BROKEN:
            return node
        if node.value == MISSING:
            self._problems.add(node.origin, key, f"is ???: it must be given. Allowed: {option_type.describe()}.")
            return Node(BROKEN, node.origin)
        fitting = _fitting_arm(node.value, option_type)
        if fitting is None:
            self._refuse(node, option_type, key)
            return Node(BROKEN, node.origin)
        if isinstance(fitting, Block):
            return Node(self._block(node, fitting, key), node.origin)
        if isinstance(fitting, Mapped):
            items = {part: self.check(child, fitting.value, f"{key}.{part}") for part, child in node.value.items()}
            return Node(items, node.origin)
        if isinstance(fitting, Scalar | Listed) and not self._is_within(node, fitting, option_type, key):
            return Node(BROKEN, node.origin)
        if isinstance(fitting, Listed | Fixed):
            return Node(self._list(node, fitting, key), node.origin)
        if isinstance(fitting, Scalar) and fitting.kind == "float":
            return Node(float(node.value), node.origin)
        return node

    def _block(self, node: Node, block: Block, key: str) -> dict[str, Node]:
        checked: dict[str, Node] = {}
        for part, child in node.value.items():
            dotted = f"{key}.{part}" if key else part
            if part in block.options:
                checked[part] = self.check(child, block.options[part].type, dotted)
            else:
                self._problems.add(child.origin, dotted, self._unknown(part, dotted, block, key))
        for part, option in block.options.items():
            if part not in node.value:
                dotted = f"{key}.{part}" if key else part
                text = f"is missing; it has no default. Allowed: {option.type.describe()}."
                self._problems.add(node.origin, dotted, text)
        return checked

    def _unknown(self, part: str, dotted: str, block: Block, key: str) -> str:
        if dotted in self._derived:
            return "follows from other parts of the recipe and cannot be given; remove it."
        if part == "<<":
            return "is YAML's merge key, which recipes do not have; use `extends:` or write the keys out."
        if "." in part:
            return "has dots, which only overrides on the command line have; nest the mappings instead."
        known = [*block.options, *([] if key else ["extends"])]
        elsewhere = {known_key.rpartition(".")[2]: known_key for known_key in reversed(self._known_keys)}
        near = elsewhere.get(part) or nearest(part, known) or elsewhere.get(nearest(part, elsewhere) or "")
        hint = f' Did you mean "{near}"?' if near else ""
        return f"is not a known key.{hint} Keys of {key or 'a recipe'}: {', '.join(known)}."

    def _list(self, node: Node, fitting: Listed | Fixed, key: str) -> list[Node]:
        types = fitting.items if isinstance(fitting, Fixed) else (fitting.item,) * len(node.value)
        pairs = zip(node.value, types, strict=True)
        return [self.check(child, one, f"{key}[{i}]") for i, (child, one) in enumerate(pairs)]

    def _is_within(self, node: Node, fitting: Scalar | Listed, option_type: OptionType, key: str) -> bool:
        """Say whether a value of the right type is within its limits; note it if not."""
        value, allowed = node.value, option_type.describe()
        within = fitting.limits.admit(value)
        if isinstance(fitting, Scalar) and fitting.kind == "float":
            is_finite = _is_finite(value)
            within, allowed = within and is_finite, allowed if is_finite else "a finite number"
        elif isinstance(value, int) and abs(value) >= LARGEST:
            within, allowed = False, "a whole number between -2**63 and 2**63"
        if not within:
            shown = f'"{value}"' if isinstance(value, str) else describe(value) if isinstance(value, list) else value
            self._problems.add(node.origin, key, f"is {shown}; allowed: {allowed}.")
        return within

    def _refuse(self, node: Node, option_type: OptionType, key: str) -> None:
        text = f"is {describe(node.value)}; allowed: {option_type.describe()}."
        self._problems.add(node.origin, key, text + _hint(node, option_type, key))


def _fitting_arm(value: Any, option_type: OptionType) -> OptionType | None:
    """Return the arm of a type that a value is meant for, by its outer shape; None if there is none."""
    arms = option_type.arms if isinstance(option_type, Either) else (option_type,)
    fitting = [arm for arm in arms if _fits(value, arm)]
    if fitting:
        return next((arm for arm in fitting if not isinstance(arm, Scalar) or arm.limits.admit(value)), fitting[0])
    if isinstance(value, int) and not isinstance(value, bool):
        return next((arm for arm in arms if isinstance(arm, Scalar) and arm.kind == "float"), None)
    return None


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False


def _fits(value: Any, arm: OptionType) -> bool:
    if isinstance(arm, Scalar):
        return type(value) is _PYTHON_TYPES[arm.kind]  # True is an int to isinstance
    if isinstance(arm, Choice):
        return any(value == allowed and type(value) is type(allowed) for allowed in arm.values)
    if isinstance(arm, Fixed):
        return isinstance(value, list) and len(value) == len(arm.items)
    return isinstance(value, list if isinstance(arm, Listed) else dict)


def _hint(node: Node, option_type: OptionType, key: str) -> str:
    """Return what to write instead, where that can be guessed."""
    arms = option_type.arms if isinstance(option_type, Either) else (option_type,)
    value = node.value
    if isinstance(value, str):
        for arm in arms:
            if isinstance(arm, Choice):
                return suggest(value, [choice for choice in arm.values if isinstance(choice, str)])
        if any(_fitting_arm(parse_scalar(value), arm) for arm in arms):
            return " Remove the quotes."
    scalar = value is not None and not isinstance(value, dict | list)
    if scalar and any(isinstance(arm, Scalar) and arm.kind == "str" for arm in arms):
        written = str(value).lower() if isinstance(value, bool) else value
        return f" Write {key}='\"{written}\"'." if node.origin == COMMAND_LINE else f' Write it in quotes: "{written}".'
    if scalar and any(isinstance(arm, Listed) and _fits_item(value, arm) for arm in arms):
        return f" Write [{value}]."
    block = _block_of(option_type)
    if isinstance(value, str) and block is not None and "name" in block.options:
        return f" Write {key}.name={value}." if node.origin == COMMAND_LINE else f" Write {{name: {value}}}."
    return ""


def _fits_item(value: Any, arm: Listed) -> bool:
    return _fitting_arm(value, arm.item) is not None


def _block_of(option_type: OptionType) -> Block | None:
    arms = option_type.arms if isinstance(option_type, Either) else (option_type,)
    return next((arm for arm in arms if isinstance(arm, Block)), None)
