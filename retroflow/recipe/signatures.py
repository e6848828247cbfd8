"""Read a component's options from its source, without importing it.

`recipe check` must know the options of components whose libraries take seconds to import or are not installed, so
signatures are read as syntax trees (docs/decisions/0002-schemas-are-read-from-source.md). A component is a function,
a class with `__init__`, or a dataclass; what it inherits counts.
"""

import ast
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MinLen

from retroflow.errors import BrokenPluginError
from retroflow.recipe.option_types import (
    REQUIRED,
    Block,
    Choice,
    Either,
    Fixed,
    Listed,
    Mapped,
    Option,
    OptionType,
    Scalar,
    limited,
)
from retroflow.recipe.source import Definition, UnreadableSourceError, find_definition

_SCALARS = {"int", "float", "str", "bool", "None"}
_LISTS = {"list", "List", "Sequence", "tuple", "Tuple"}
_DICTS = {"dict", "Dict", "Mapping"}
_MARKERS = {marker.__name__: marker for marker in (Ge, Gt, Le, Lt, Interval, MinLen, Len)}
_UNKNOWN: Any = object()  # a default that is not a literal


@lru_cache(maxsize=128)
def read_block(target: str, owner: str, derived: frozenset[str] = frozenset()) -> Block:
    """Return the options of the component at target.

    Args:
        target: "package.module:Name".
        owner: distribution that claims the target, for messages.
        derived: parameters that are no options.

    Raises:
        BrokenPluginError: the source is missing, is not Python, lacks the name, or has a required parameter that
            YAML cannot express.
    """
    module, _, name = target.partition(":")
    try:
        definition = find_definition(module, name)
        if definition is None:
            raise UnreadableSourceError(f'module "{module}" does not define "{name}"')
        return _block(definition, derived, 0)
    except (UnreadableSourceError, RecursionError) as error:
        raise BrokenPluginError(f'The options of "{target}" ({owner}) cannot be read: {error}.') from None


def _block(definition: Definition, derived: frozenset[str], depth: int) -> Block:
    if depth > 8:
        raise UnreadableSourceError(f'"{_name(definition.node)}" is nested in itself')
    options: dict[str, Option] = {}
    for name, annotation, default, module in _parameters(definition):
        if name in derived:
            continue
        option_type = _type(annotation, module, depth) if annotation is not None else None
        value = _default(default, option_type, module) if default is not None else REQUIRED
        if option_type is not None and value is not _UNKNOWN:
            options[name] = Option(option_type, value)
        elif default is None:
            written = "no annotation" if annotation is None else f"the annotation {ast.unparse(annotation)}"
            raise UnreadableSourceError(
                f'parameter "{name}" of {_name(definition.node)} has {written} and no default; options are int, '
                "float, str, bool, Literal, list, tuple, dict[str, ...], dataclasses and unions of these"
            )
        # A parameter with a default that YAML cannot express (an injected client) is simply not an option.
    return Block(options)


Parameter = tuple[str, ast.expr | None, ast.expr | None, str]  # name, annotation, default, module


def _parameters(definition: Definition) -> list[Parameter]:
    node, module = definition.node, definition.module
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return list(_arguments(node.args, module, skip=0))
    if not isinstance(node, ast.ClassDef):
        raise UnreadableSourceError(f'"{_name(node)}" is neither a class nor a function')
    if _is_dataclass(node):
        return list({parameter[0]: parameter for parameter in _fields(definition)}.values())
    for owner in _with_bases(definition):
        for member in owner.node.body if isinstance(owner.node, ast.ClassDef) else ():
            if isinstance(member, ast.FunctionDef) and member.name == "__init__":
                return list(_arguments(member.args, owner.module, skip=1))
    return []


def _arguments(arguments: ast.arguments, module: str, *, skip: int) -> Iterator[Parameter]:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = zip(positional, [*defaults, *arguments.defaults], strict=True)
    for argument, default in [*list(pairs)[skip:], *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]:
        yield argument.arg, argument.annotation, default, module


def _fields(definition: Definition) -> Iterator[Parameter]:
    """Yield a dataclass's fields, those of its bases first."""
    for owner in reversed(_with_bases(definition)):
        if not (isinstance(owner.node, ast.ClassDef) and _is_dataclass(owner.node)):
            continue
        for member in owner.node.body:
            if not (isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name)):
                continue
            if _last_name(member.annotation) in ("ClassVar", "KW_ONLY"):
                continue
            if _field_keyword(member.value, "init") is False:
                continue
            yield member.target.id, member.annotation, member.value, owner.module


def _with_bases(definition: Definition, depth: int = 0) -> list[Definition]:
    """Return a class and its bases, nearest first; a base that cannot be found has nothing to say."""
    found = [definition]
    if isinstance(definition.node, ast.ClassDef) and depth < 8:
        for base in definition.node.bases:
            parent = _lookup(base, definition.module)
            if parent is not None:
                found += _with_bases(parent, depth + 1)
    return found


def _lookup(expression: ast.expr, module: str) -> Definition | None:
    if not isinstance(expression, ast.Name):
        return None
    try:
        return find_definition(module, expression.id)
    except UnreadableSourceError:
        return None


def _type(annotation: ast.expr, module: str, depth: int) -> OptionType | None:
    """Return what an annotation allows, None if YAML cannot express it."""
    if isinstance(annotation, ast.Constant):
        if annotation.value is None:
            return Scalar("None")
        if isinstance(annotation.value, str):
            return _type(ast.parse(annotation.value, mode="eval").body, module, depth)
        return None
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _either([annotation.left, annotation.right], module, depth)
    if isinstance(annotation, ast.Subscript):
        inner = annotation.slice
        items = list(inner.elts) if isinstance(inner, ast.Tuple) else [inner]
        return _subscripted(_last_name(annotation), items, module, depth)
    if isinstance(annotation, ast.Name) and annotation.id in _SCALARS:
        return Scalar(annotation.id)
    return _named(annotation, module, depth)


def _named(annotation: ast.expr, module: str, depth: int) -> OptionType | None:
    definition = _lookup(annotation, module)
    if definition is None:
        return None
    if isinstance(definition.node, ast.ClassDef):
        return _block(definition, frozenset(), depth + 1) if _is_dataclass(definition.node) else None
    alias = getattr(definition.node, "value", None)  # X = Literal[...], or `type X = ...`
    return _type(alias, definition.module, depth + 1) if isinstance(alias, ast.expr) and depth < 8 else None


def _subscripted(name: str, items: list[ast.expr], module: str, depth: int) -> OptionType | None:
    if name == "Literal":
        return Choice(tuple(item.value for item in items if isinstance(item, ast.Constant)))
    if name in ("Optional", "Union"):
        return _either([*items, *([ast.Constant(None)] if name == "Optional" else [])], module, depth)
    if name in ("Annotated", "InitVar", "Final"):
        inner = _type(items[0], module, depth)
        return inner and limited(inner, _markers(items[1:], module))
    types = [_type(item, module, depth) for item in items if not _is_ellipsis(item)]
    known = [one for one in types if one is not None]
    if len(known) != len(types) or not known:
        return None
    if name in _LISTS:
        endless = name not in ("tuple", "Tuple") or _is_ellipsis(items[-1])
        return Listed(known[0]) if endless else Fixed(tuple(known))
    if name in _DICTS and len(known) == 2 and known[0] == Scalar("str"):
        return Mapped(known[1])
    return None


def _markers(expressions: list[ast.expr], module: str) -> Iterator[object]:
    """Yield the markers of annotated-types in an annotation whose arguments are literals or names of constants.

    Others are passed over here; `binding` sees the objects themselves.
    """
    for expression in expressions:
        if isinstance(expression, ast.Call) and _last_name(expression.func) in _MARKERS:
            args = [_default(argument, None, module) for argument in expression.args]
            words = {word.arg: _default(word.value, None, module) for word in expression.keywords if word.arg}
            if not any(value is _UNKNOWN for value in [*args, *words.values()]):
                yield _MARKERS[_last_name(expression.func)](*args, **words)


def _either(expressions: list[ast.expr], module: str, depth: int) -> OptionType | None:
    arms: list[OptionType] = []
    for expression in expressions:
        arm = _type(expression, module, depth)
        if arm is not None:  # an arm YAML cannot express (Path, in str | Path) leaves the others
            arms += arm.arms if isinstance(arm, Either) else [arm]
    if not arms or all(arm == Scalar("None") for arm in arms):
        return None
    return Either(tuple(arms)) if len(arms) > 1 else arms[0]


def _default(expression: ast.expr, option_type: OptionType | None, module: str) -> Any:
    """Return a default as a plain value; REQUIRED for `field()` without one, _UNKNOWN if it is not a literal."""
    if isinstance(expression, ast.Call) and _last_name(expression.func) == "field":
        return _field_default(expression, option_type, module)
    if isinstance(expression, ast.Call) and isinstance(option_type, Block) and not expression.args:
        given = {word.arg: _default(word.value, None, module) for word in expression.keywords if word.arg}
        values = {key: option.default for key, option in option_type.options.items()} | given
        return _UNKNOWN if _UNKNOWN in values.values() else values
    if isinstance(expression, ast.Name):
        definition = _lookup(expression, module)
        constant = getattr(definition.node, "value", None) if definition else None
        return _default(constant, option_type, definition.module) if definition and constant else _UNKNOWN
    try:
        return _plain(ast.literal_eval(expression))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _UNKNOWN


def _field_default(call: ast.Call, option_type: OptionType | None, module: str) -> Any:
    words = {word.arg: word.value for word in call.keywords}
    if "default" in words:
        return _default(words["default"], option_type, module)
    factory = words.get("default_factory")
    if factory is None:
        return REQUIRED
    if isinstance(factory, ast.Lambda):
        return _default(factory.body, option_type, module)
    if isinstance(factory, ast.Name) and factory.id in ("list", "tuple", "dict"):
        return {} if factory.id == "dict" else []
    return _default(ast.Call(factory, [], []), option_type, module)


def _field_keyword(value: ast.expr | None, keyword: str) -> Any:
    for word in value.keywords if isinstance(value, ast.Call) and _last_name(value.func) == "field" else ():
        if word.arg == keyword and isinstance(word.value, ast.Constant):
            return word.value.value
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, int | float | str) or value is None:
        return value
    raise ValueError(value)


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(_last_name(decorator) == "dataclass" for decorator in node.decorator_list)


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


def _last_name(node: ast.expr) -> str:
    """Return "Literal" for Literal, typing.Literal, Literal[...] and Literal(...)."""
    if isinstance(node, ast.Subscript | ast.Call):
        return _last_name(node.value if isinstance(node, ast.Subscript) else node.func)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _name(node: ast.stmt) -> str:
    return str(getattr(node, "name", ast.unparse(node)))
