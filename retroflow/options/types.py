"""The types an option may have, as data: what annotations become.

The method `describe` gives the "allowed" half of an error message.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from annotated_types import BaseMetadata, Ge, GroupedMetadata


class _Sign:
    """A marker for a value that no option can have."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


REQUIRED: Any = _Sign("REQUIRED")
"""The default of an option without one."""

BROKEN: Any = _Sign("BROKEN")
"""A value that a complaint is noted for; nothing more is said about it."""


@dataclass(frozen=True)
class Limits:
    """The range of a number, or the least length of a text or list.

    Attributes:
        ge, gt, le, lt: bounds of a number; None for no bound.
        min_length: characters of a text or items of a list.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int = 0

    def admit(self, value: Any) -> bool:
        """Return whether a number, text or list is within the limits."""
        if isinstance(value, str | list | tuple):
            return len(value) >= self.min_length
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def describe(self) -> str:
        """Return what follows "a whole number" in a message: " of at least 1", " from 0 to 1"."""
        if self.ge is not None and (self.le is not None or self.lt is not None):
            return f" from {self.ge} to {self.le}" if self.le is not None else f" from {self.ge} to below {self.lt}"
        bounds = [("of at least", self.ge), ("above", self.gt), ("up to", self.le), ("below", self.lt)]
        words = [f"{word} {bound}" for word, bound in bounds if bound is not None]
        return f" {' and '.join(words)}" if words else ""

    def describe_length(self, unit: str) -> str:
        """Return what follows "text" or "a list" in a message."""
        if self.min_length > 1:
            return f" of at least {self.min_length} {unit}"
        return " that is not empty" if self.min_length else ""


UNLIMITED = Limits()
_LIMITED = ("int", "float", "str")


@dataclass(frozen=True)
class Scalar:
    """One of int, float, str, bool, None, by name, within limits."""

    kind: str
    limits: Limits = UNLIMITED

    def describe(self) -> str:
        if self.kind == "str":
            return f"text{self.limits.describe_length('characters')}"
        name = {"int": "a whole number", "float": "a number", "bool": "true or false", "None": "null"}[self.kind]
        return name + self.limits.describe()


@dataclass(frozen=True)
class Choice:
    """A Literal."""

    values: tuple[Any, ...]

    def describe(self) -> str:
        shown = [f'"{value}"' if isinstance(value, str) else str(value).lower() for value in self.values]
        return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


@dataclass(frozen=True)
class Listed:
    """A list or tuple of any length with one type of item.

    Attributes:
        item: type of every item.
        limits: least number of items.
        container: what Python code gets, list or tuple.
    """

    item: "OptionType"
    limits: Limits = UNLIMITED
    container: type = field(default=list, compare=False)

    def describe(self) -> str:
        return f"a list{self.limits.describe_length('items')}, each item {self.item.describe()}"


@dataclass(frozen=True)
class Fixed:
    """A tuple with a type for each place."""

    items: tuple["OptionType", ...]

    def describe(self) -> str:
        return f"a list of {len(self.items)}: {'; '.join(item.describe() for item in self.items)}"


@dataclass(frozen=True)
class Mapped:
    """A dict with text keys of the reader's choice."""

    value: "OptionType"

    def describe(self) -> str:
        return f"a mapping, each value {self.value.describe()}"


@dataclass(frozen=True)
class Anything:
    """A value that no recipe can contain, such as a path or a client; Python code passes it unchanged."""

    def describe(self) -> str:
        return "another object"


@dataclass(frozen=True)
class Either:
    """A union; the first arm that accepts a value takes it."""

    arms: tuple["OptionType", ...]

    def describe(self) -> str:
        return " or ".join(arm.describe() for arm in self.arms)


@dataclass(frozen=True)
class Option:
    """One key.

    Attributes:
        type: what its value may be.
        default: the plain value taken if the key is absent, or REQUIRED.
        description: what the docstring says about it.
    """

    type: "OptionType"
    default: Any = REQUIRED
    description: str = field(default="", compare=False)


@dataclass(frozen=True)
class Block:
    """The options of a component or of a nested dataclass.

    Attributes:
        options: by name.
        made: the dataclass that a mapping of these options becomes; None where options are read from source.
        description: the first sentence of the docstring.
    """

    options: dict[str, Option] = field(default_factory=dict)
    made: type | None = field(default=None, compare=False)
    description: str = field(default="", compare=False)

    def describe(self) -> str:
        return f"a mapping with the keys {', '.join(self.options)}" if self.options else "an empty mapping"


OptionType = Scalar | Choice | Listed | Fixed | Mapped | Anything | Either | Block


def arms_of(option_type: OptionType) -> tuple[OptionType, ...]:
    """Return the arms of a union, or the type itself."""
    return option_type.arms if isinstance(option_type, Either) else (option_type,)


def block_of(option_type: OptionType) -> Block | None:
    """Return the block that a value of this type may be, None if it may not be one."""
    return next((arm for arm in arms_of(option_type) if isinstance(arm, Block)), None)


def writable(option_type: OptionType) -> OptionType | None:
    """Return the part of a type that a recipe can write; None if that is nothing, or null alone."""
    if isinstance(option_type, Either):
        arms = tuple(arm for arm in map(writable, option_type.arms) if arm is not None)
        if all(arm == Scalar("None") for arm in arms):
            return None
        return Either(arms) if len(arms) > 1 else arms[0]
    if isinstance(option_type, Listed):
        item = writable(option_type.item)
        return item and replace(option_type, item=item)
    if isinstance(option_type, Mapped):
        value = writable(option_type.value)
        return value and Mapped(value)
    if isinstance(option_type, Fixed):
        items = tuple(item for item in map(writable, option_type.items) if item is not None)
        return Fixed(items) if len(items) == len(option_type.items) else None
    return None if isinstance(option_type, Anything) else option_type


def limited(option_type: OptionType, markers: Iterable[object]) -> OptionType:
    """Return a type within the limits that markers of annotated-types set; other markers are passed over.

    In a union every arm takes what it can: bounds are a number's, a length is a text's or a list's.
    """
    if isinstance(option_type, Either):
        markers = tuple(markers)
        return Either(tuple(limited(arm, markers) for arm in option_type.arms))
    if isinstance(option_type, Listed) or (isinstance(option_type, Scalar) and option_type.kind in _LIMITED):
        return replace(option_type, limits=replace(option_type.limits, **dict(_bounds(markers))))
    return option_type


def _bounds(markers: Iterable[object]) -> Iterator[tuple[str, Any]]:
    for marker in markers:
        for name in ("ge", "gt", "le", "lt", "min_length"):
            if isinstance(marker, BaseMetadata | GroupedMetadata) and getattr(marker, name, None) is not None:
                yield name, getattr(marker, name)


Seed = Annotated[int, Ge(0)]
"""A seed of numpy and torch; like every whole number of a recipe it is below 2**63."""
