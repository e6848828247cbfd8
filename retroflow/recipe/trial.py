"""Try a recipe's values out: construct what can be constructed without loading a library.

Types are checked against source; ranges (`trainer.max_steps: -5`) and values that do not fit each other are known to
the options' own classes alone. Their complaints start with the dotted key, which is where the place comes from.
"""

import importlib
import re
from collections.abc import Mapping
from typing import Any

from retroflow.errors import RecipeError
from retroflow.recipe.binding import bind
from retroflow.recipe.problems import COMMAND_LINE, DEFAULT, Origin, Problems
from retroflow.recipe.resolved import Recipe
from retroflow.recipe.schema import RecipeSchema, Slot

_KEY_FIRST = re.compile(r"^([a-z_]+(?:\.\w+)+)[:, ]+(.*)$", re.DOTALL)


def try_out(recipe: Recipe, schema: RecipeSchema, problems: Problems) -> None:
    """Construct sections and light components with the recipe's values; note what they refuse."""
    for name, section in schema.sections.items():
        values = recipe.section(name)
        if isinstance(section, Slot):
            entry = section.registry.entry(values.pop("name"))
            if not entry.light:
                continue
            target = entry.target
            values |= {key: _value_at(recipe.values, dotted) for key, dotted in section.derived.items()}
        else:
            target = section.target
        _try(name, target, values, recipe, problems)


def _try(name: str, target: str, values: dict[str, Any], recipe: Recipe, problems: Problems) -> None:
    module, _, attribute = target.partition(":")
    component = getattr(importlib.import_module(module), attribute)
    try:
        bind(component, values, where=name)
    except RecipeError as error:
        for line in str(error).splitlines():
            key, text = _split(line)
            problems.add(_origin(key, recipe), key, text)


def _split(line: str) -> tuple[str, str]:
    match = _KEY_FIRST.match(line.strip())
    return (match[1], match[2]) if match else ("", line.strip())


def _origin(key: str, recipe: Recipe) -> Origin:
    written = recipe.origins.get(key, str(recipe.path))
    if written in (str(COMMAND_LINE), str(DEFAULT)):
        return Origin(written)
    source, _, line = written.rpartition(":")
    return Origin(source, int(line)) if source and line.isdigit() else Origin(written)


def _value_at(values: Mapping[str, Any], dotted: str) -> Any:
    section, _, key = dotted.partition(".")
    return values[section][key]
