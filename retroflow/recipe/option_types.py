"""The types an option may have, as data: what annotations in a component's signature become.

`describe` is the "allowed" half of an error message.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from annotated_types import BaseMetadata, GroupedMetadata


class _Required:
    """Marks an option without a default."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()


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
        """Say whether a number, text or list is within the limits."""
        if isinstance(value, str | list):
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


UNLIMITED = Limits()
_LIMITED = ("int", "float", "str")


@dataclass(frozen=True)
class Scalar:
    """One of int, float, str, bool, None, by name, within limits."""

    kind: str
    limits: Limits = UNLIMITED

    def describe(self) -> str:
        if self.kind == "str":
            return f"text{_of_length(self.limits, 'characters')}"
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
    """A list or tuple of any length with one type of item."""

    item: "OptionType"
    limits: Limits = UNLIMITED

    def describe(self) -> str:
        return f"a list{_of_length(self.limits, 'items')}, each item {self.item.describe()}"


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
    """

    type: "OptionType"
    default: Any = REQUIRED


@dataclass(frozen=True)
class Block:
    """The options of a component or of a nested dataclass."""

    options: dict[str, Option] = field(default_factory=dict)

    def describe(self) -> str:
        return f"a mapping with the keys {', '.join(self.options)}" if self.options else "an empty mapping"


OptionType = Scalar | Choice | Listed | Fixed | Mapped | Either | Block


def limited(option_type: OptionType, markers: Iterable[object]) -> OptionType:
    """Return a type within the limits that markers of annotated-types set; other markers are passed over.

    In a union every arm takes what it can: bounds are a number's, a length is a text's or a list's.
    """
    if isinstance(option_type, Either):
        markers = tuple(markers)
        return Either(tuple(limited(arm, markers) for arm in option_type.arms))
    if isinstance(option_type, Listed) or (isinstance(option_type, Scalar) and option_type.kind in _LIMITED):
        return replace(option_type, limits=replace(option_type.limits, **_bounds(markers)))
    return option_type


def _bounds(markers: Iterable[object]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for marker in markers:
        if isinstance(marker, BaseMetadata | GroupedMetadata):
            values = {name: getattr(marker, name, None) for name in ("ge", "gt", "le", "lt", "min_length")}
            found |= {name: value for name, value in values.items() if value is not None}
    return found


def _of_length(limits: Limits, unit: str) -> str:
    if limits.min_length > 1:
        return f" of at least {limits.min_length} {unit}"
    return " that is not empty" if limits.min_length else ""
