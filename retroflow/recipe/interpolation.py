"""References between values: `${data.chunk_length}` becomes the value of that key.

A value that is one reference takes the other's value as it is; in a longer text references are written out. Nothing but
keys of the recipe can be referred to: `${env:HOME}` would make a recipe mean something else on another machine, and
would write secrets into stored runs.
"""

import json
import re
from typing import Any

from retroflow.options.fitting import suggest
from retroflow.options.types import BROKEN
from retroflow.recipe.problems import Problems
from retroflow.recipe.tree import Node, plant

MAX_EXPANDED = 10_000  # characters that all references together may grow to
MAX_CHAIN = 16  # references that lead to references

_REFERENCE = re.compile(r"\$\{\s*([A-Za-z_]\w*(?:\.\w+|\[\d+\])*)\s*\}")


def resolve(root: Node, problems: Problems) -> Node:
    """Return the tree with every reference replaced by its value; broken ones are recorded."""
    return _References(root, problems).replaced(root, "")


class _EndlessError(Exception):
    """A reference that never ends, or grows too large; the message continues "which ..."."""


class _References:
    """The references of a tree.

    Args:
        root: the tree.
        problems: where broken references are noted.
    """

    def __init__(self, root: Node, problems: Problems) -> None:
        self._root, self._problems = root, problems
        self._known: dict[int, tuple[Any, int]] = {}
        self._total = 0

    def replaced(self, node: Node, key: str) -> Node:
        """The node at a key ("a.b[0]") with every reference in it replaced."""
        if isinstance(node.value, dict):
            items = {part: self.replaced(child, f"{key}.{part}" if key else part) for part, child in node.value.items()}
            return Node(items, node.origin)
        if isinstance(node.value, list):
            return Node([self.replaced(child, f"{key}[{i}]") for i, child in enumerate(node.value)], node.origin)
        if not (isinstance(node.value, str) and "${" in node.value):
            return node
        problem, value = self._problem_of(node.value), BROKEN
        if not problem:
            try:
                value, size = self._expanded(node, ())
                self._total += size
                if self._total > MAX_EXPANDED:
                    raise _EndlessError(f"makes all references grow to more than {MAX_EXPANDED} characters")
            except _EndlessError as error:
                problem = f'is "{node.value[:80]}", which {error}.'
        if problem:
            self._problems.add(node.origin, key, problem)
        return plant(BROKEN if problem else value, node.origin)

    def _problem_of(self, text: str) -> str:
        """What is wrong with the references of a text itself, empty if nothing is."""
        if "${" in _REFERENCE.sub("", text):
            return (
                f'is "{text[:80]}"; the only form of a reference is ${{section.key}} (no resolvers such as oc.env, no '
                "nesting)."
            )
        for target in _REFERENCE.findall(text):
            if _find(self._root, target) is None:
                return f'refers to "{target}", which the recipe does not have.{suggest(target, _keys(self._root, ""))}'
        return ""

    def _expanded(self, node: Node, chain: tuple[int, ...]) -> tuple[Any, int]:
        """Plain value of a node and its size in characters; BROKEN where a problem is noted for another key."""
        if id(node) in self._known:
            return self._known[id(node)]
        if id(node) in chain:
            raise _EndlessError("refers to itself")
        if len(chain) > MAX_CHAIN:
            raise _EndlessError(f"leads through more than {MAX_CHAIN} references")
        chain, value, size = (*chain, id(node)), node.value, 1
        if isinstance(value, dict | list):
            keys = value if isinstance(value, dict) else range(len(value))
            found = {key: self._expanded(value[key], chain) for key in keys}
            size += sum(each for _, each in found.values())
            plain = {key: each for key, (each, _) in found.items()}
            value = plain if isinstance(value, dict) else list(plain.values())
        elif isinstance(value, str):
            value, size = self._written_out(value, chain)
        if size > MAX_EXPANDED:
            raise _EndlessError(f"grows to more than {MAX_EXPANDED} characters")
        self._known[id(node)] = value, size
        return value, size

    def _written_out(self, text: str, chain: tuple[int, ...]) -> tuple[Any, int]:
        parts = _REFERENCE.split(text)  # every second one is a target
        if len(parts) > 1 and self._problem_of(text):
            return BROKEN, 1
        found = [self._expanded(_find(self._root, target) or self._root, chain) for target in parts[1::2]]
        size = len(text) + sum(each for _, each in found)
        if parts[0] == parts[-1] == "" and len(parts) == 3:
            return found[0][0], size
        for number, (value, _) in enumerate(found):
            if value is BROKEN:
                return BROKEN, size
            if isinstance(value, dict | list):
                raise _EndlessError(f'puts "{parts[2 * number + 1]}", a mapping or a list, into a text')
            parts[2 * number + 1] = value if isinstance(value, str) else json.dumps(value)
        return "".join(parts), size


def _find(root: Node, dotted: str) -> Node | None:
    node = root
    for part in re.split(r"[.\[]", dotted.replace("]", "")):
        if isinstance(node.value, dict) and part in node.value:
            node = node.value[part]
        elif isinstance(node.value, list) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
        else:
            return None
    return node


def _keys(node: Node, key: str) -> list[str]:
    """Keys of all values that are neither mapping nor list: "a.b", "a.c[0]"."""
    if isinstance(node.value, dict):
        return [each for part, child in node.value.items() for each in _keys(child, f"{key}.{part}" if key else part)]
    if isinstance(node.value, list):
        return [each for i, child in enumerate(node.value) for each in _keys(child, f"{key}[{i}]")]
    return [key]
