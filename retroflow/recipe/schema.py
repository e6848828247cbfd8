"""What a recipe may contain: fixed sections, and slots whose options depend on their component."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from retroflow.registry import Registry

RECIPE_VERSION = 1


@dataclass(frozen=True)
class Slot:
    """A section whose `name` picks a component; the component's parameters are its options.

    Attributes:
        registry: where names are looked up.
        default: the name if a recipe leaves out the section, None if it must not.
        derived: parameters that are set by the composition root and are not options; each with the key whose value
            replaces it while a recipe is checked.
    """

    registry: Registry[Any]
    default: str | None = None
    derived: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A section with fixed options: the fields of a dataclass, given as "package.module:Class"."""

    target: str


@dataclass(frozen=True)
class RecipeSchema:
    """The sections of a recipe in the order they are shown; `recipe_version`, `seed` and `extends` come on top.

    Attributes:
        sections: by name.
        database: "package.module:function" that gives the sections of a database by its path; empty without the key.
    """

    sections: Mapping[str, Slot | Section]
    database: str = ""

    @property
    def slots(self) -> dict[str, Slot]:
        """The sections whose options depend on a name."""
        return {name: section for name, section in self.sections.items() if isinstance(section, Slot)}
