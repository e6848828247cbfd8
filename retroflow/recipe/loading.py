"""Load a recipe: read, extend, override, complete, resolve, check; then raise every problem at once."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from retroflow.errors import MissingExtraError, RecipeError, RetroflowError
from retroflow.options.fitting import describe, nearest
from retroflow.options.types import BROKEN, REQUIRED, Block, Choice, Limits, Option, Scalar
from retroflow.recipe.checking import MISSING, check, complete
from retroflow.recipe.database_key import expanded
from retroflow.recipe.interpolation import resolve
from retroflow.recipe.overrides import parse_overrides
from retroflow.recipe.problems import DEFAULT, Problems
from retroflow.recipe.resolved import Recipe
from retroflow.recipe.schema import RECIPE_VERSION, RecipeSchema, Slot
from retroflow.recipe.shipped import find_recipe
from retroflow.recipe.signatures import read_block
from retroflow.recipe.tree import Node, overlay, plant
from retroflow.recipe.trial import try_out
from retroflow.recipe.yaml_text import read_file

COMMAND_LINE_PATH = Path("the command line")
"""In place of a file, of sections that stand on the command line alone."""


def load(recipe: Path | str, overrides: Sequence[str], *, schema: RecipeSchema) -> Recipe:
    """Load and check a recipe; nothing it names is imported.

    Args:
        recipe: the YAML file, or the name of a recipe that is installed with retroflow.
        overrides: words such as "trainer.max_steps=5", laid over the file.
        schema: what a recipe may contain.

    Raises:
        RecipeError: the recipe or an override is wrong; the message lists every problem with its place.
        RetroflowError: a plugin the recipe names is claimed twice or unreadable, and nothing else is wrong.
    """
    path = find_recipe(recipe)
    problems = Problems(str(path))
    tree = _read_with_parent(path, problems)
    tree = overlay(tree, parse_overrides(overrides, problems))
    _check_version(tree, problems)
    return _checked(expanded(tree, schema, problems), schema, problems, path)


def _checked(tree: Node, schema: RecipeSchema, problems: Problems, path: Path) -> Recipe:
    layout = _layout(tree, schema, problems)
    tree = complete(_checkable(tree, layout, schema, problems), layout)
    derived = frozenset(f"{section}.{key}" for section, slot in schema.slots.items() for key in slot.derived)
    checked = check(resolve(tree, problems), layout, problems, derived)
    try_out(checked, schema, problems)
    problems.raise_if_any()
    return Recipe(values=checked.plain(), origins=_origins(checked), path=path)


def load_sections(words: Sequence[str], *, schema: RecipeSchema) -> Recipe:
    """Check sections that stand on the command line alone.

    Args:
        words: such as "corpus.name=text".
        schema: the sections.

    Raises:
        RecipeError: a word is wrong, or an option is missing; the message lists every problem.
        RetroflowError: as `load`.
    """
    problems = Problems("the command line")
    tree = overlay(plant({"recipe_version": RECIPE_VERSION}, DEFAULT), parse_overrides(words, problems))
    return _checked(tree, schema, problems, COMMAND_LINE_PATH)


def load_options(slot: Slot, name: str, words: Sequence[str]) -> dict[str, Any]:
    """Check the options of one component.

    Args:
        slot: where the name is looked up.
        name: the component's.
        words: such as "search.nprobe=4".

    Returns:
        Every option, those that are not given by their defaults.

    Raises:
        RecipeError: an option is wrong; the message lists every problem.
        RetroflowError: a plugin that is claimed twice or unreadable.
    """
    problems = Problems("the command line")
    given = parse_overrides(words, problems)
    layout = Block(_component_options(given, name, "", slot, problems))
    given = complete(given, layout)
    checked = check(given, layout, problems, frozenset(slot.derived))
    problems.raise_if_any()
    return dict(checked.plain())


def _read_with_parent(path: Path, problems: Problems) -> Node:
    """Read a recipe and the one it extends, if any; `extends` itself is not a value and is dropped."""
    child = read_file(path, problems)
    extends = child.value.pop("extends", None)
    _check_version(child, problems, stop=True)
    if extends is None or extends.value is BROKEN:
        return child
    if not isinstance(extends.value, str) or not extends.value:
        allowed = "allowed: the path of another recipe, relative to this one"
        problems.add(extends.origin, "extends", f"is {describe(extends.value)}; {allowed}.")
        return child
    parent_path = Path(os.path.normpath(path.parent / extends.value))
    parent = read_file(parent_path, problems, said=extends.origin)
    further = parent.value.pop("extends", None)
    if further is not None:
        text = f"is given in a recipe that {path} extends already; recipes are extended one level deep."
        problems.add(further.origin, "extends", text)
        problems.raise_if_any()  # what else is wrong may be in a recipe that is not read
    _check_version(parent, problems, stop=True)
    return overlay(parent, child)


def _check_version(tree: Node, problems: Problems, *, stop: bool = False) -> None:
    """Refuse a version this program does not know; keys may mean something else there, so nothing else is said."""
    version = tree.value.get("recipe_version")
    if version is None or type(version.value) is not int or version.value == RECIPE_VERSION:
        return
    advice = "Install a newer retroflow." if version.value > RECIPE_VERSION else "Versions start at 1."
    text = f"is {version.value}; this retroflow reads version {RECIPE_VERSION}. {advice}"
    if stop:
        raise RecipeError(f"{version.origin}: recipe_version {text}")
    problems.add(version.origin, "recipe_version", text)


def _layout(tree: Node, schema: RecipeSchema, problems: Problems) -> Block:
    """Return the options of the whole recipe, those of slots for the components it names."""
    options = {"recipe_version": Option(Choice((RECIPE_VERSION,))), "seed": Option(Scalar("int", Limits(ge=0)), 1)}
    for name, section in schema.sections.items():
        if isinstance(section, Slot):
            block = _slot_block(tree.value.get(name), name, section, problems)
        else:
            block = read_block(section.target, "retroflow")
        options[name] = Option(block)
    return Block(options)


def _slot_block(node: Node | None, section: str, slot: Slot, problems: Problems) -> Block:
    """Return a slot's options; only `name` if it names nothing that is known."""
    named = node.value.get("name") if node is not None and node.is_mapping else None
    name = named.value if named is not None else slot.default
    if not isinstance(name, str) or name == MISSING:
        return Block({"name": Option(Choice(tuple(slot.registry.names())))})
    name_option = Option(Scalar("str"), slot.default or REQUIRED)
    try:
        entry = slot.registry.entry(name)
        remedy = slot.registry.remedy(name) if entry.is_plugin else None
        if remedy:  # without a plugin's files there are no options to read
            raise MissingExtraError(remedy)
        options = _component_options(node, name, section, slot, problems)
    except RetroflowError as error:
        origin = named.origin if named is not None else DEFAULT
        problems.add(origin, f"{section}.name", f'is "{name}". {error}', cause=error)
        options = {}
    return Block({"name": name_option} | options)


def _component_options(node: Node | None, name: str, section: str, slot: Slot, problems: Problems) -> dict[str, Option]:
    """Return the options of a named component, those of its parts for the components that they name."""
    entry = slot.registry.entry(name)
    options = dict(read_block(entry.target, entry.owner, frozenset(slot.derived)).options)
    for part, default in entry.parts.items():
        written = node.value.get(part) if node is not None and node.is_mapping else None
        key = f"{section}.{part}" if section else part
        block = _slot_block(written, key, Slot(slot.registry, default), problems)
        options[part] = Option(block, None, options[part].description)
    return options


def _checkable(tree: Node, layout: Block, schema: RecipeSchema, problems: Problems) -> Node:
    """Add absent sections, empty; refuse the keys that a component without options is given."""
    sections = dict(tree.value)
    for name in schema.sections:
        sections.setdefault(name, Node({}, tree.origin))
    for name, slot in schema.slots.items():
        node, block = sections[name], layout.options[name].type
        if not node.is_mapping or not isinstance(block, Block) or list(block.options) != ["name"]:
            continue
        if block.options["name"].type == Scalar("str") and not problems.names(f"{name}.name"):
            sections[name] = _without_options(node, name, slot, problems)
        else:
            sections[name] = Node({key: child for key, child in node.value.items() if key == "name"}, node.origin)
    return Node(sections, tree.origin)


def _without_options(node: Node, section: str, slot: Slot, problems: Problems) -> Node:
    """Refuse the keys given to a component that has no options; offer the component of its kind that has them."""
    named = node.value.get("name")
    component = named.value if named is not None else slot.default
    kept = {}
    for key, child in node.value.items():
        if key == "name" or key in slot.derived or not key.isidentifier():
            kept[key] = child
            continue
        hint = _hint_at_others(key, section, slot)
        text = f'is not a known key: {slot.registry.kind} "{component}" takes no options.{hint or " Remove the key."}'
        problems.add(child.origin, f"{section}.{key}", text)
    return Node(kept, node.origin)


def _hint_at_others(key: str, section: str, slot: Slot) -> str:
    """Return a sentence about the first component of the kind that has the key, or one that is spelt like it."""
    keys_of: dict[str, list[str]] = {}
    for name in slot.registry.names():
        with suppress(RetroflowError):
            entry = slot.registry.entry(name)
            keys_of[name] = list(read_block(entry.target, entry.owner, frozenset(slot.derived)).options)
    for meant in (key, nearest(key, [known for keys in keys_of.values() for known in keys])):
        for name, keys in keys_of.items():
            if meant in keys:
                return f' {slot.registry.kind} "{name}" has "{meant}": write {section}.name={name} if it is meant.'
    return ""


def _origins(node: Node, key: str = "") -> dict[str, str]:
    if not isinstance(node.value, dict) or not node.value:
        return {key: str(node.origin)}
    found: dict[str, str] = {}
    for part, child in node.value.items():
        found |= _origins(child, f"{key}.{part}" if key else part)
    return found
