"""References between values, `${data.chunk_length}`, resolved by OmegaConf.

Only references to other keys are allowed: with OmegaConf's resolvers (`${oc.env:HOME}`) a recipe would mean something
else on another machine, and secrets would be written into stored runs.
"""

import re
from typing import Any

from retroflow.options.fitting import suggest
from retroflow.options.types import BROKEN
from retroflow.recipe.problems import Problems
from retroflow.recipe.tree import Node, plant

MAX_EXPANDED = 10_000  # characters that all references together may grow to; OmegaConf resolves some 10,000 a second
MAX_CHAIN = 16  # references that lead to references

_REFERENCE = re.compile(r"\$\{\s*([A-Za-z_]\w*(?:\.\w+|\[\d+\])*)\s*\}")


def resolve(root: Node, problems: Problems) -> Node:
    """Return the tree with every reference replaced by its value; broken ones are recorded."""
    written = _leaves(root, "")
    referring = {key: node for key, node in written.items() if isinstance(node.value, str) and "${" in node.value}
    if not referring:
        return root
    sizes: dict[int, int] = {}
    broken: set[str] = set()
    total = 0
    for key, node in referring.items():
        size = _sound_size(key, node, root, sizes, problems)
        total += size
        if not size:
            broken.add(key)
    if total > MAX_EXPANDED:
        problems.add(root.origin, "", f"its references grow to more than {MAX_EXPANDED} characters; write values out.")
        broken = set(referring)
    sound = {key: node for key, node in referring.items() if key not in broken}
    values = dict.fromkeys(broken, BROKEN) | _resolve_sound(_without(root, broken, ""), sound, problems)
    return _replace(root, values, "")


def _resolve_sound(plain: dict[str, Any], referring: dict[str, Node], problems: Problems) -> dict[str, Any]:
    """Return the resolved values by key."""
    from omegaconf import OmegaConf  # here, because it takes a tenth of a second and few recipes need it
    from omegaconf.errors import OmegaConfBaseException

    config = OmegaConf.create(plain)
    values: dict[str, Any] = {}
    for key, node in referring.items():
        try:
            value = OmegaConf.select(config, key, throw_on_resolution_failure=True)
            values[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except (OmegaConfBaseException, RecursionError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            problems.add(node.origin, key, f'is "{str(node.value)[:80]}", which cannot be resolved: {reason}.')
            values[key] = BROKEN
    return values


def _sound_size(key: str, node: Node, root: Node, sizes: dict[int, int], problems: Problems) -> int:
    """Check what OmegaConf would not: form, target, circles. Return the size after expansion, 0 if unsound."""
    text = str(node.value)
    if "${" in _REFERENCE.sub("", text):
        problems.add(
            node.origin,
            key,
            f'is "{text[:80]}"; the only form of a reference is ${{section.key}} (no resolvers such as oc.env, '
            "no nesting).",
        )
        return 0
    for target in _REFERENCE.findall(text):
        if _find(root, target) is None:
            near = suggest(target, list(_leaves(root, "")))
            problems.add(node.origin, key, f'refers to "{target}", which the recipe does not have.{near}')
            return 0
    try:
        return _expanded_size(node, root, (), sizes)
    except _EndlessError as error:
        problems.add(node.origin, key, f'is "{text[:80]}", which {error}.')
        return 0


class _EndlessError(Exception):
    """A reference that never ends, or becomes too large."""


def _expanded_size(node: Node, root: Node, chain: tuple[int, ...], known: dict[int, int]) -> int:
    if id(node) in known:
        return known[id(node)]
    if id(node) in chain:
        raise _EndlessError("refers to itself")
    if len(chain) > MAX_CHAIN:
        raise _EndlessError(f"leads through more than {MAX_CHAIN} references")
    size = 1
    if isinstance(node.value, dict | list):
        children = node.value.values() if isinstance(node.value, dict) else node.value
        size += sum(_expanded_size(child, root, (*chain, id(node)), known) for child in children)
    elif isinstance(node.value, str):
        size += len(node.value)
        for target in _REFERENCE.findall(node.value):
            found = _find(root, target)
            size += _expanded_size(found, root, (*chain, id(node)), known) if found else 0
    if size > MAX_EXPANDED:
        raise _EndlessError(f"grows to more than {MAX_EXPANDED} characters")
    known[id(node)] = size
    return size


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


def _leaves(node: Node, key: str) -> dict[str, Node]:
    """Return every value that is neither mapping nor list by its key: "a.b", "a.c[0]"."""
    found: dict[str, Node] = {}
    if isinstance(node.value, dict):
        for part, child in node.value.items():
            found |= _leaves(child, f"{key}.{part}" if key else part)
    elif isinstance(node.value, list):
        for position, child in enumerate(node.value):
            found |= _leaves(child, f"{key}[{position}]")
    else:
        found[key] = node
    return found


def _without(node: Node, broken: set[str], key: str) -> Any:
    """Return plain values for OmegaConf, with null for what is broken."""
    if isinstance(node.value, dict):
        return {part: _without(child, broken, f"{key}.{part}" if key else part) for part, child in node.value.items()}
    if isinstance(node.value, list):
        return [_without(child, broken, f"{key}[{i}]") for i, child in enumerate(node.value)]
    return None if key in broken or node.value is BROKEN else node.value


def _replace(node: Node, values: dict[str, Any], key: str) -> Node:
    if isinstance(node.value, dict):
        items = {part: _replace(child, values, f"{key}.{part}" if key else part) for part, child in node.value.items()}
        return Node(items, node.origin)
    if isinstance(node.value, list):
        return Node([_replace(child, values, f"{key}[{i}]") for i, child in enumerate(node.value)], node.origin)
    return plant(values[key], node.origin) if key in values else node
