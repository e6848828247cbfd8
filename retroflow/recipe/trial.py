"""Try out a recipe's values: find those that contradict each other, without loading a library.

Sections and light components are constructed if each of their values is valid. The check of a component's registry
entry is called with the valid ones. Messages start with the dotted key, from which file and line are found.
"""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from retroflow.errors import UsageError
from retroflow.options import bind
from retroflow.options.types import BROKEN
from retroflow.recipe.problems import DEFAULT, Origin, Problems
from retroflow.recipe.schema import RecipeSchema, Slot
from retroflow.recipe.tree import Node
from retroflow.registry import Entry

_KEY_FIRST = re.compile(r"^([a-z_]+(?:\.\w+)+)[:, ]+(.*)$", re.DOTALL)


def try_out(recipe: Node, schema: RecipeSchema, problems: Problems) -> None:
    """Construct sections and light components with a recipe's values; record what they refuse.

    Args:
        recipe: the checked tree, BROKEN where there is a problem.
        schema: what a recipe may contain.
        problems: collects the problems.
    """
    wrong = {problem.key for problem in problems.found}
    for name, section in schema.sections.items():
        values = recipe.value[name].sound() if name in recipe.value else None
        if not isinstance(values, dict) or f"{name}.name" in wrong:
            continue
        target, derived = "", {}
        if isinstance(section, Slot):
            entry = section.registry.entry(component := values.pop("name"))
            _check_needs(f'{name} "{component}"', entry, recipe, schema, problems)
            derived = {key: recipe.nearest(dotted.split(".")).sound() for key, dotted in section.derived.items()}
            target = entry.target if entry.light else ""
            with _noting(recipe, problems):
                _check_component(entry, values, name, section)
        else:
            target = section.target
        is_right = not any(key.partition(".")[0] == name for key in wrong) and BROKEN not in derived.values()
        if target and is_right:
            with _noting(recipe, problems):
                bind(_load(target), values | derived, where=name, owner=name)


def _check_component(entry: Entry, values: dict[str, Any], key: str, slot: Slot) -> None:
    """Call the check of a component, and those of its parts.

    Raises:
        UsageError: options that do not fit each other.
    """
    for part in entry.parts.keys() & values.keys():
        options = dict(values[part] or {})
        if options.get("name") in slot.registry.names():
            try:
                _check_component(slot.registry.entry(options.pop("name")), options, f"{key}.{part}", slot)
            except UsageError as error:  # components call their options as if they were all of the section
                raise UsageError(re.sub(rf"^{key}\.", f"{key}.{part}.", str(error), flags=re.MULTILINE)) from error
    if entry.check:
        _load(entry.check)(values)


def _check_needs(component: str, entry: Entry, recipe: Node, schema: RecipeSchema, problems: Problems) -> None:
    """Note the sections that a component needs and the recipe leaves out."""
    for section in entry.needs:
        slot = schema.slots[section]
        named = recipe.nearest([section, "name"])
        if named.value == slot.default:
            others = ", ".join(each for each in slot.registry.names() if each != slot.default)
            is_given = named.origin != DEFAULT
            found = (
                f'is "{named.value}", and {component} needs one'
                if is_given
                else f"is missing, and {component} needs it"
            )
            text = f"{found}. Allowed: {others}."
            problems.add(named.origin if is_given else Origin(recipe.origin.source), f"{section}.name", text)


@contextmanager
def _noting(recipe: Node, problems: Problems) -> Iterator[None]:
    """Note each line of a UsageError at the place of the key that it starts with."""
    try:
        yield
    except UsageError as error:
        for line in str(error).splitlines():
            match = _KEY_FIRST.match(line.strip())
            key, text = (match[1], match[2]) if match else ("", line.strip())
            problems.add(_written_at(recipe, key), key, text)


def _written_at(recipe: Node, key: str) -> Origin:
    """Return where a key, or the innermost section around it that somebody wrote, has its value."""
    parts = key.split(".")
    nodes = (recipe.nearest(parts[:length]) for length in range(len(parts), 0, -1))
    written = (node.origin for node in nodes if node is not recipe and node.origin != DEFAULT)
    return next(written, Origin(recipe.origin.source))


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
