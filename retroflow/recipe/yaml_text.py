"""YAML text to nodes with line numbers, and back.

PyYAML's composer is used and its constructor is not: no tag is ever executed, a key given twice is seen, and a
scalar is what YAML 1.2's core schema says. YAML 1.1, the default of PyYAML and OmegaConf, reads `yes` as true, `010`
as 8 and `1:30` as 90.
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from retroflow.errors import RecipeError
from retroflow.options.fitting import describe
from retroflow.options.types import BROKEN
from retroflow.recipe.problems import Origin, Problems
from retroflow.recipe.tree import Node

MAX_FILE_BYTES = 64 * 1024  # a recipe is a few KB; PyYAML takes seconds for nested brackets of this size
MAX_NODES = 20_000  # counted after expanding aliases, so that ten lines cannot become a billion values
MAX_DEPTH = 32
MAX_DIGITS = 300  # Python refuses to read integers of more than 4,300 digits

_TAG = "tag:yaml.org,2002:"
_NUMBER = r"(?:\.[0-9]+|(?:0|[1-9][0-9_]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
_IMPLICIT: tuple[tuple[str, str, list[str]], ...] = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    ("float", rf"^[-+]?(?:{_NUMBER}|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$", list("-+0123456789.")),
)
_SCALARS = {_TAG + name for name, _, _ in _IMPLICIT} | {_TAG + "str"}


_WRITTEN = "written "


class _Loader(yaml.SafeLoader):
    """Composes with the implicit types above."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 (declared so by PyYAML)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Mark a node whose tag is written in the file; the tag of other nodes follows from their text."""
        written = getattr(self.peek_event(), "tag", None)  # type: ignore[no-untyped-call]
        node: yaml.Node | None = super().compose_node(parent, index)
        if node is not None and written is not None:
            node.tag = _WRITTEN + node.tag
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that _Loader or a YAML 1.1 reader would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        plain = not any(isinstance(item, dict | list | tuple) for item in data)
        return self.represent_sequence(_TAG + "seq", data, flow_style=plain)


_Dumper.add_representer(list, _Dumper.represent_list)
_Dumper.add_representer(tuple, _Dumper.represent_list)

for _name, _pattern, _first in _IMPLICIT:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)


def dump(value: Any) -> str:
    """Return plain values as YAML that `read` turns into equal values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def read_file(path: Path, problems: Problems, *, said: Origin | None = None) -> Node:
    """Read a recipe file into a mapping node; what can be read is returned, what cannot is noted in problems.

    Args:
        path: the file.
        problems: collects double keys, tags and the like.
        said: where the file was named, for the message if it is missing.

    Raises:
        RecipeError: the file cannot be read, is not UTF-8, not YAML, empty, or not a mapping.
    """
    place = f"{said}: extends: " if said else ""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)  # a device or a pipe may never end
    except FileNotFoundError:
        raise RecipeError(f"{place}There is no recipe at {path}.{_offer(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"{place}The recipe {path} cannot be read: {reason}.") from error
    if len(data) > MAX_FILE_BYTES:
        raise RecipeError(f"{place}{path} is larger than {MAX_FILE_BYTES // 1024} KB; it is not a recipe.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: byte {error.start} is not UTF-8. Save the recipe as UTF-8.") from None
    root = read(text, str(path), problems)
    if root.value is None:
        raise RecipeError(f"{path} is empty. A recipe starts with `recipe_version: 1`; see docs/recipes.md.")
    if not root.is_mapping:
        raise RecipeError(f"{path}: a recipe is a mapping of `key: value` lines, not {describe(root.value)}.")
    return root


def read(text: str, source: str, problems: Problems, *, origin: Origin | None = None) -> Node:
    """Read YAML text into nodes.

    Args:
        text: one YAML document.
        source: the file's name for messages.
        problems: collects what is wrong without making the rest unreadable.
        origin: the origin of every node; None for source and line.

    Raises:
        RecipeError: the text is not YAML.
    """
    try:
        composed = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = origin or Origin(source, mark.line + 1 if mark else 1)
        raise RecipeError(f"{place}: this is not YAML: {_yaml_reason(error)}.") from None
    except yaml.reader.ReaderError as error:
        place = origin or Origin(source, text.count("\n", 0, error.position) + 1)
        character = f"U+{ord(error.character):04X}" if isinstance(error.character, str) else f"U+{error.character:04X}"
        raise RecipeError(f"{place}: this is not YAML: it holds the control character {character}.") from None
    except RecursionError:
        raise RecipeError(f"{origin or source}: this is nested too deeply for a recipe.") from None
    if composed is None:
        return Node(None, origin or Origin(source, 1))
    return _Conversion(source, problems, origin).convert(composed, "", 0)


class _Conversion:
    """One walk over a composed document, with its budget."""

    def __init__(self, source: str, problems: Problems, origin: Origin | None) -> None:
        self._source = source
        self._problems = problems
        self._fixed_origin = origin
        self._left = MAX_NODES

    def convert(self, node: yaml.Node, key: str, depth: int, line: int | None = None) -> Node:
        """Convert a composed node; `line` is where a mapping's value was announced."""
        origin = self._fixed_origin or Origin(self._source, line or node.start_mark.line + 1)
        self._left -= 1
        if self._left < 0:
            raise RecipeError(f"{origin}: {key}: more than {MAX_NODES} values; a recipe is not this large.")
        if depth > MAX_DEPTH:
            raise RecipeError(f"{origin}: {key[:60]}: nested more than {MAX_DEPTH} levels; does an alias hold itself?")
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return Node(self._mapping(node, key, depth), origin)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            items = [self.convert(item, f"{key}[{i}]", depth + 1) for i, item in enumerate(node.value)]
            return Node(items, origin)
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return Node(self._scalar(node, key, origin), origin)
        tag = node.tag.removeprefix(_WRITTEN).replace(_TAG, "!!")
        self._problems.add(origin, key, f"has the tag {tag}; a recipe holds plain values. Remove the tag.")
        return Node(BROKEN, origin)

    def _mapping(self, node: yaml.MappingNode, parent: str, depth: int) -> dict[str, Node]:
        items: dict[str, Node] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            origin = self._fixed_origin or Origin(self._source, line)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                self._problems.add(origin, parent, f'has the key "{shown}", which is not text; write it in quotes.')
                continue
            key = f"{parent}.{key_node.value}" if parent else key_node.value
            if key_node.value in items:
                first = items[key_node.value].origin
                text = f"is given twice, first in line {first.line or 1}; remove one of them."
                self._problems.add(origin, key, text)
                continue
            items[key_node.value] = self.convert(value_node, key, depth + 1, line)
        return items

    def _scalar(self, node: yaml.ScalarNode, key: str, origin: Origin) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind == "int" and len(text) > MAX_DIGITS:
            self._problems.add(origin, key, f"is {text[:40]}..., a number of more than {MAX_DIGITS} digits.")
            return BROKEN
        if "\0" in text:  # no path, name or library takes it
            self._problems.add(origin, key, "holds the control character U+0000. Remove it.")
            return BROKEN
        return _converted(kind, text)


def parse_scalar(text: str) -> Any:
    """Return the value of a plain scalar as a recipe would read it: "12" -> 12, "yes" -> "yes"."""
    if text != text.strip() or len(text) > MAX_DIGITS:
        return text
    for name, pattern, _ in _IMPLICIT:
        if re.match(pattern, text):
            return _converted(name, text)
    return text


def _converted(kind: str, text: str) -> Any:
    """Return a scalar's text as its kind, whose pattern it matches."""
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text)
    if kind == "float":
        return _to_float(text)
    return None if kind == "null" else text


def _to_float(text: str) -> float:
    lowered = text.lower()
    if lowered.lstrip("+-") == ".inf":
        return -math.inf if lowered.startswith("-") else math.inf
    return math.nan if lowered == ".nan" else float(text)


def _yaml_reason(error: yaml.MarkedYAMLError) -> str:
    reason = ", ".join(part for part in (error.context, error.problem) if part).replace("\n", " ")
    return f"{reason} (indent with spaces, not tabs)" if r"'\t'" in reason else reason


def _offer(path: Path) -> str:
    """Return the recipes that are where one was looked for."""
    folder = path.parent
    near = sorted(folder.glob("*.yaml"))[:12] if folder.is_dir() else []
    return f" There are: {', '.join(map(str, near))}." if near else ""
