"""Values with file and line, and how one tree overlays another."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from retroflow.options.types import BROKEN
from retroflow.recipe.problems import Origin


@dataclass(frozen=True)
class Node:
    """A scalar, a list of nodes or a mapping of nodes, with its origin (for a mapping's value: its key's line)."""

    value: Any
    origin: Origin

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.value, dict)

    def plain(self) -> Any:
        """Return the value without origins."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def sound(self) -> Any:
        """Return the value without origins and without the keys of mappings that are broken."""
        if isinstance(self.value, dict):
            return {key: node.sound() for key, node in self.value.items() if node.value is not BROKEN}
        return self.plain()

    def nearest(self, path: Iterable[str | int]) -> "Node":
        """Return the node at the end of a path of keys and positions, or the deepest one on the way to it."""
        node = self
        for part in path:
            is_list = isinstance(node.value, list) and isinstance(part, int)
            if not is_list and not (node.is_mapping and part in node.value):
                break
            node = node.value[part]
        return node

    def with_values(self, value: Any) -> "Node":
        """Return plain values of the same form as this tree, with the origins of this tree."""
        if isinstance(value, dict):
            return Node({key: self.value[key].with_values(one) for key, one in value.items()}, self.origin)
        if isinstance(value, list | tuple):
            return Node([node.with_values(one) for node, one in zip(self.value, value, strict=True)], self.origin)
        return Node(value, self.origin)


def plant(value: Any, origin: Origin) -> Node:
    """Return a tree of plain values that all have one origin."""
    if isinstance(value, dict):
        return Node({key: plant(item, origin) for key, item in value.items()}, origin)
    if isinstance(value, list | tuple):
        return Node([plant(item, origin) for item in value], origin)
    return Node(value, origin)


def overlay(under: Node, over: Node) -> Node:
    """Return `over` laid on `under`: mappings are merged key by key, everything else is replaced.

    A mapping whose `name` differs from the one under it belongs to another component, whose options mean something
    else; it replaces the whole block.
    """
    if not (under.is_mapping and over.is_mapping) or _names_another(under, over):
        return over
    merged = dict(under.value)
    for key, node in over.value.items():
        merged[key] = overlay(merged[key], node) if key in merged else node
    return Node(merged, under.origin)


def _names_another(under: Node, over: Node) -> bool:
    old, new = under.value.get("name"), over.value.get("name")
    return old is not None and new is not None and old.value != new.value
