"""Values with the place they were written at, and how one tree overlays another."""

from dataclasses import dataclass
from typing import Any

from retroflow.recipe.problems import Origin


class _Broken:
    """Stands for a value that a problem was already noted for; nothing more is said about it."""

    def __repr__(self) -> str:
        return "BROKEN"


BROKEN: Any = _Broken()


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
