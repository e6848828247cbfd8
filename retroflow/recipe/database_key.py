"""`database: PATH`, which stands for the corpus, embedder, retriever and tokenizer of a database.

With `data.format: qa` the corpus is questions, and the database stands for their passages.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from retroflow.errors import RetroflowError
from retroflow.options.fitting import describe
from retroflow.recipe.problems import COMMAND_LINE, Problems
from retroflow.recipe.schema import RecipeSchema
from retroflow.recipe.tree import Node, overlay, plant

KEY = "database"
_DECIDED: dict[str, tuple[str, ...] | None] = {
    "corpus": ("name", "path"),
    "embedder": None,
    "retriever": None,
    "data": ("tokenizer", "chunk_length"),
}
"""Keys that the database decides, by section; None for all of it."""


def expanded(tree: Node, schema: RecipeSchema, problems: Problems) -> Node:
    """Return a tree in which the sections of a database stand in place of the key.

    What another file says about them is replaced, as by an override; what stands beside the key contradicts it.

    Args:
        tree: of the recipe with its overrides.
        schema: knows where the sections are read.
        problems: collects what contradicts the database.
    """
    node = tree.value.get(KEY)
    if node is None or not schema.database:
        return tree
    rest = {name: child for name, child in tree.value.items() if name != KEY}
    if node.value is None:
        return Node(rest, tree.origin)
    if not isinstance(node.value, str) or not node.value:
        problems.add(node.origin, KEY, f"is {describe(node.value)}; allowed: the folder of a database.")
        return Node(rest, tree.origin)
    module, _, name = schema.database.partition(":")
    try:
        sections: dict[str, Any] = getattr(importlib.import_module(module), name)(node.value)
    except RetroflowError as error:
        problems.add(node.origin, KEY, f'is "{node.value}". {error}', cause=error)
        return Node(rest, tree.origin)
    decided = _DECIDED
    if _asks_questions(rest):
        path = sections["corpus"]["path"]
        sections = {**sections, "data": {**sections["data"], "passages": path}}
        del sections["corpus"]
        decided = {**_DECIDED, "corpus": (), "data": ("tokenizer", "chunk_length", "passages")}
    for section, keys in decided.items():
        if section in rest and rest[section].is_mapping:
            rest[section] = _left(rest[section], node, section, keys, problems)
    return overlay(plant(sections, node.origin), Node(rest, tree.origin))


def _asks_questions(tree: Mapping[str, Node]) -> bool:
    """Say whether the corpus is questions, whose passages are in the database."""
    data = tree.get("data")
    chosen = data.value.get("format") if data is not None and data.is_mapping else None
    return chosen is not None and chosen.value == "qa"


def _left(section: Node, database: Node, name: str, keys: tuple[str, ...] | None, problems: Problems) -> Node:
    """Return what a section says beside a database."""
    left = {}
    for key, child in section.value.items():
        if keys is not None and key not in keys:
            left[key] = child
        elif child.origin == COMMAND_LINE or child.origin.source == database.origin.source:
            text = f'is given beside {KEY} "{database.value}", which decides it; remove one of the two.'
            problems.add(child.origin, f"{name}.{key}", text)
    return Node(left, section.origin)
