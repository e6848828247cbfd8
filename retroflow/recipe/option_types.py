"""The types an option may have, as data: what annotations in a component's signature become.

`describe` is the "allowed" half of an error message.
"""

from dataclasses import dataclass, field
from typing import Any


class _Required:
    """Marks an option without a default."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()


@dataclass(frozen=True)
class Scalar:
    """One of int, float, str, bool, None, by name."""

    kind: str

    def describe(self) -> str:
        return {
            "int": "a whole number",
            "float": "a number",
            "str": "text",
            "bool": "true or false",
            "None": "null",
        }[self.kind]


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

    def describe(self) -> str:
        return f"a list, each item {self.item.describe()}"


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
