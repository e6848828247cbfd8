"""Recipe: the resolved values of a recipe, with the origin of each."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroflow.recipe.overrides import STARTS_YAML
from retroflow.recipe.problems import COMMAND_LINE
from retroflow.recipe.yaml_text import dump, parse_scalar


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. Complete: every default is filled in; derived values are absent.

    Attributes:
        values: nested plain values (dict, list, str, int, float, bool, None).
        origins: dotted key of every value that is not a mapping -> "recipes/x.yaml:12", "command line" or "default".
        path: the file it was read from.
    """

    values: dict[str, Any]
    origins: Mapping[str, str]
    path: Path

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    def section(self, name: str) -> dict[str, Any]:
        """Return a copy of one section's values; a slot's include its `name`."""
        section: dict[str, Any] = copy.deepcopy(self.values[name])
        return section

    def overrides(self) -> list[str]:
        """Return the `key=value` words that it was loaded with, resolved."""
        words = []
        for key, origin in self.origins.items():
            if origin == str(COMMAND_LINE):
                value: Any = self.values
                for part in key.split("."):
                    value = value[part]
                words.append(f"{key}={as_override(value)}")
        return words

    def to_yaml(self) -> str:
        """Return the values as YAML that loads to an equal recipe, without `extends` and interpolation."""
        return dump(self.values)


def as_override(value: Any) -> str:
    """Return how the command line writes a value."""
    is_plain = isinstance(value, str) and parse_scalar(value) == value and not value.startswith(STARTS_YAML)
    return str(value) if is_plain else json.dumps(value)  # JSON is YAML
