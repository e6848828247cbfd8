"""Read a component's options from its source, without importing it.

`recipe check` must know the options of components whose libraries take seconds to import or are not installed, so
signatures are read as syntax trees (docs/decisions/0002-schemas-are-read-from-source.md). A component is a function,
a class with `__init__`, or a dataclass; what it inherits counts.
"""

import ast
import builtins
import operator
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, Union

from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MinLen

from retroflow.errors import BrokenPluginError
from retroflow.options.annotations import descriptions, option_type
from retroflow.options.fitting import Fitting
from retroflow.options.types import REQUIRED, Block, Option, OptionType, block_of, writable
from retroflow.recipe.source import Definition, UnreadableSourceError, file_of, find_definition

_SCALARS = {"int": int, "float": float, "str": str, "bool": bool}
_GENERICS: dict[str, Any] = {"Union": Union, "Sequence": list, "Mapping": dict}
_GENERICS |= dict.fromkeys(("list", "List"), list) | dict.fromkeys(("dict", "Dict"), dict)
_GENERICS |= dict.fromkeys(("tuple", "Tuple"), tuple)
_DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_MARKERS = {marker.__name__: marker for marker in (Ge, Gt, Le, Lt, Interval, MinLen, Len)}
_UNKNOWN: Any = object()  # a default that is not a literal

_WITHOUT_OPTIONS = {"Generic", "Protocol", "ABC", *dir(builtins)}  # classes to inherit from that add no parameter

_ALLOWED = (
    "An option is int, float, str, bool, Literal, list, tuple, dict[str, ...], a dataclass of these or a union, and "
    "its default is a constant; docs/recipes.md says more"
)

_ARITHMETIC: dict[type[ast.operator], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
}
_LARGEST_EXPONENT = 64  # of 2**64 and 1 << 64; reading a signature must not compute for long


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


class Parameter(NamedTuple):
    """A parameter as it is written, and where."""

    name: str
    annotation: ast.expr | None
    default: ast.expr | None
    module: str
    line: int


def _block(definition: Definition, derived: frozenset[str], depth: int) -> Block:
    if depth > 8:
        raise UnreadableSourceError(f'"{_name(definition.node)}" is nested in itself')
    options: dict[str, Option] = {}
    documented = [owner.node for owner in reversed(_with_bases(definition))]
    docstrings = [ast.get_docstring(node) for node in documented if isinstance(node, _DOCUMENTED)]
    about = {name: _in_yaml(text) for name, text in descriptions(*docstrings).items()}
    for parameter in _parameters(definition):
        # What a test injects is no option: `_client: Client | None = None`.
        if parameter.name in derived or (parameter.name.startswith("_") and parameter.default is not None):
            continue
        if parameter.name == "name" and depth == 0:
            text = f'{_name(definition.node)} has the parameter "name", by which recipes name the component; rename it'
            raise _refused(parameter, text)
        options[parameter.name] = _option(parameter, _name(definition.node), about.get(parameter.name, ""), depth)
    return Block(options, description=(docstrings[-1] or "").partition("\n\n")[0].replace("\n", " "))


def _in_yaml(text: str) -> str:
    """Return a description with the constants of Python as a recipe writes them."""
    return re.sub(r"\b(None|True|False)\b", lambda found: {"None": "null"}.get(found[0], found[0].lower()), text)


def _option(parameter: Parameter, owner: str, description: str, depth: int) -> Option:
    """Return what a parameter becomes.

    Raises:
        UnreadableSourceError: YAML cannot express its type, or its default is unknown or of another type.
    """
    name, annotation, default, module, _ = parameter
    found = None
    with suppress(SyntaxError, TypeError):  # an annotation that is no expression, or subscripts what has no items
        if annotation is not None:
            found = writable(option_type(_annotation(annotation, module), lambda one: _nested_block(one, depth)))
    if found is None:
        written = "no annotation" if annotation is None else f"the annotation {ast.unparse(annotation)}"
        raise _refused(parameter, f'parameter "{name}" of {owner} has {written}. {_ALLOWED}')
    value = REQUIRED if default is None else _default(default, found, module)
    if default is not None and value is _UNKNOWN:
        written = f"the default {ast.unparse(default)}, which is no constant"
        raise _refused(parameter, f'parameter "{name}" of {owner} has {written}. {_ALLOWED}')
    if value is not REQUIRED and not (value is None and block_of(found) is not None):  # None: the block's own defaults
        fitting = Fitting()
        fitting.fit(value, found)
        if fitting.complaints:
            text = fitting.complaints[0].text.removesuffix(".")
            raise _refused(parameter, f'the default of parameter "{name}" of {owner} {text}')
    return Option(found, value, description)


def _nested_block(found: Any, depth: int) -> Block | None:
    is_options = isinstance(found, Definition) and isinstance(found.node, ast.ClassDef) and _is_dataclass(found.node)
    return _block(found, frozenset(), depth + 1) if is_options else None


def _refused(parameter: Parameter, text: str) -> UnreadableSourceError:
    return UnreadableSourceError(f"{file_of(parameter.module)}:{parameter.line}: {text}")


def _parameters(definition: Definition) -> list[Parameter]:
    node, module = definition.node, definition.module
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return list(_arguments(node.args, _name(node), module, skip=0))
    if not isinstance(node, ast.ClassDef):
        place = f"{file_of(module)}:{node.lineno}"
        raise UnreadableSourceError(f'{place}: "{_name(node)}" is neither a class nor a function')
    if _is_dataclass(node):
        _check_bases(definition)
        return list({parameter.name: parameter for parameter in _fields(definition)}.values())
    for owner in _with_bases(definition):
        for member in reversed(owner.node.body) if isinstance(owner.node, ast.ClassDef) else ():
            if isinstance(member, ast.FunctionDef) and member.name == "__init__":
                return list(_arguments(member.args, _name(owner.node), owner.module, skip=1))
    _check_bases(definition)
    return []


def _check_bases(definition: Definition) -> None:
    """Refuse a class that may have parameters of a base class whose source is not read."""
    for owner in _with_bases(definition):
        for base in owner.node.bases if isinstance(owner.node, ast.ClassDef) else ():
            if _last_name(base) not in _WITHOUT_OPTIONS and _lookup(base, owner.module) is None:
                raise UnreadableSourceError(
                    f"{file_of(owner.module)}:{base.lineno}: {_name(owner.node)} inherits from {ast.unparse(base)}, "
                    "whose source is not found, so its parameters are not known; give it an __init__ that has them"
                )


def _arguments(arguments: ast.arguments, owner: str, module: str, *, skip: int) -> Iterator[Parameter]:
    """Yield the parameters of a function but for the first `skip`.

    Raises:
        UnreadableSourceError: one that is not given by name.
    """
    unnamed = [(one, f'"{one.arg}" before /') for one in arguments.posonlyargs[skip:]]
    starred = ((arguments.vararg, "*"), (arguments.kwarg, "**"))
    unnamed += [(one, f'"{stars}{one.arg}"') for one, stars in starred if one is not None]
    for argument, written in unnamed:
        raise UnreadableSourceError(
            f"{file_of(module)}:{argument.lineno}: {owner} has the parameter {written}; options are given by name, so "
            "write out each of them"
        )
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = zip(positional, [*defaults, *arguments.defaults], strict=True)
    for argument, default in [*list(pairs)[skip:], *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]:
        yield Parameter(argument.arg, argument.annotation, default, module, argument.lineno)


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
            yield Parameter(member.target.id, member.annotation, member.value, owner.module, member.lineno)


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
    expression = expression.value if isinstance(expression, ast.Subscript) else expression
    if not isinstance(expression, ast.Name):
        return None
    try:
        return find_definition(module, expression.id)
    except UnreadableSourceError:
        return None


def _annotation(written: ast.expr, module: str, depth: int = 0) -> Any:
    """Return the object of an annotation: a Definition for a class, the annotation itself if unknown."""
    if isinstance(written, ast.Constant):
        if isinstance(written.value, str):
            return _annotation(ast.parse(written.value, mode="eval").body, module, depth)
        return type(None) if written.value is None else written.value
    if isinstance(written, ast.BinOp) and isinstance(written.op, ast.BitOr):
        return _GENERICS["Union"][_annotation(written.left, module, depth), _annotation(written.right, module, depth)]
    if isinstance(written, ast.Subscript):
        items = written.slice.elts if isinstance(written.slice, ast.Tuple) else [written.slice]
        return _subscripted(written, items, module, depth)
    if isinstance(written, ast.Name) and written.id in _SCALARS:
        return _SCALARS[written.id]
    definition = _lookup(written, module)
    if definition is None or isinstance(definition.node, ast.ClassDef):
        return definition or written
    alias = getattr(definition.node, "value", None)  # X = Literal[...], or `type X = ...`
    return _annotation(alias, definition.module, depth + 1) if isinstance(alias, ast.expr) and depth < 8 else written


def _subscripted(written: ast.Subscript, items: list[ast.expr], module: str, depth: int) -> Any:
    name = _last_name(written)
    if name == "Literal":
        return Literal[tuple(item.value for item in items if isinstance(item, ast.Constant))]
    if name in ("Annotated", "InitVar", "Final"):
        return Annotated[_annotation(items[0], module, depth), None, *_markers(items[1:], module)]
    if name == "Optional":
        return _GENERICS["Union"][_annotation(items[0], module, depth), None]
    if name not in _GENERICS or not items:
        return written
    return _GENERICS[name][tuple(_annotation(item, module, depth) for item in items)]


def _markers(expressions: list[ast.expr], module: str) -> Iterator[object]:
    """Yield the markers of annotated-types in an annotation whose arguments are literals or names of constants.

    Others are passed over here; `options.bind` sees the objects themselves.
    """
    for expression in expressions:
        if isinstance(expression, ast.Call) and _last_name(expression.func) in _MARKERS:
            args = [_default(argument, None, module) for argument in expression.args]
            words = {word.arg: _default(word.value, None, module) for word in expression.keywords if word.arg}
            if not any(value is _UNKNOWN for value in [*args, *words.values()]):
                yield _MARKERS[_last_name(expression.func)](*args, **words)


def _default(expression: ast.expr, option_type: OptionType | None, module: str) -> Any:
    """Return a default as a plain value; REQUIRED for `field()` without one, _UNKNOWN if it is not a constant."""
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
    if isinstance(expression, ast.BinOp):
        return _computed(expression, module)
    if isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.USub):
        return _computed(ast.BinOp(ast.Constant(0), ast.Sub(), expression.operand), module)
    if isinstance(expression, ast.List | ast.Tuple):
        items = [_default(item, None, module) for item in expression.elts]
        return _UNKNOWN if _UNKNOWN in items else items
    try:
        return _plain(ast.literal_eval(expression))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _UNKNOWN


def _computed(expression: ast.BinOp, module: str) -> Any:
    """Return the value of arithmetic on numbers, such as 2 * 8 and 2**20; _UNKNOWN of anything else."""
    left, right = (_default(side, None, module) for side in (expression.left, expression.right))
    compute = _ARITHMETIC.get(type(expression.op))
    if compute is None or not all(type(side) in (int, float) for side in (left, right)):
        return _UNKNOWN
    if isinstance(expression.op, ast.Pow | ast.LShift) and abs(right) > _LARGEST_EXPONENT:
        return _UNKNOWN
    try:
        return _plain(compute(left, right))
    except (ArithmeticError, ValueError, TypeError):
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


def _last_name(node: ast.expr) -> str:
    """Return "Literal" for Literal, typing.Literal, Literal[...] and Literal(...)."""
    if isinstance(node, ast.Subscript | ast.Call):
        return _last_name(node.value if isinstance(node, ast.Subscript) else node.func)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _name(node: ast.stmt) -> str:
    return str(node.name) if hasattr(node, "name") else ast.unparse(node)
