"""Find where a name is defined, in source text, without importing the module that defines it."""

import ast
import importlib.machinery
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from importlib.abc import InspectLoader

MAX_FOLLOWED = 12  # imports that are followed to find a definition


class UnreadableSourceError(Exception):
    """Source that is missing or says something this room does not understand; becomes a BrokenPluginError."""


@dataclass(frozen=True)
class Definition:
    """The statement that binds a top-level name, and its module."""

    node: ast.stmt
    module: str


@lru_cache(maxsize=256)
def find_definition(module: str, name: str, followed: int = 0) -> Definition | None:
    """Return the class, function or assignment that binds name in module; imports are followed.

    Returns:
        None if the module does not bind the name, or binds it to a module.

    Raises:
        UnreadableSourceError: the module's source cannot be found or parsed, or imports lead in a circle.
    """
    if followed > MAX_FOLLOWED:
        raise UnreadableSourceError(f'the imports of "{name}" lead in a circle')
    for node in reversed(_top_level(_parse(module).body)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find_definition(_absolute(module, node), alias.name, followed + 1)
        elif name in _bound_names(node):
            return Definition(node, module)
    return None


def _bound_names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        return [node.target.id]
    alias = getattr(node, "name", None)  # `type X = ...`, from Python 3.12 on
    return [alias.id] if isinstance(alias, ast.Name) else []


def _top_level(body: list[ast.stmt]) -> list[ast.stmt]:
    """Return a module's statements, those under `if` and `try` included."""
    found: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            found += _top_level(node.body) + _top_level(node.orelse)
        else:
            found.append(node)
    return found


def imported_packages(module: str) -> list[str]:
    """Return the packages that a module needs to be imported: those of its imports outside `if` and `try`.

    Raises:
        UnreadableSourceError: as `find_definition`.
    """
    found: list[str] = []
    for node in _parse(module).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append(node.module or "")
    return sorted({name.partition(".")[0] for name in found})


def file_of(module: str) -> str:
    """Return the file that a module's source is in.

    Raises:
        UnreadableSourceError: there is no such module.
    """
    return _locate(module).origin or module


@lru_cache(maxsize=64)
def _parse(module: str) -> ast.Module:
    spec = _locate(module)
    file = spec.origin or module
    source: str | None = None
    if isinstance(spec.loader, InspectLoader):
        try:
            source = spec.loader.get_source(spec.name)
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            text = f"{file}:{line}: not {error.encoding.upper()}; save the file as UTF-8"
            raise UnreadableSourceError(text) from None
        except SyntaxError as error:  # of the first two lines, which may name an encoding
            raise UnreadableSourceError(f"{file}: {error.msg}; save the file as UTF-8") from None
        except (ImportError, OSError) as error:
            raise UnreadableSourceError(f'the source of module "{module}" cannot be read ({error})') from None
    if source is None:
        raise UnreadableSourceError(f'module "{module}" has no Python source (is it compiled?)')
    try:
        return ast.parse(source)
    except SyntaxError as error:
        place = f"{file}:{error.lineno}" if error.lineno else file
        raise UnreadableSourceError(f"{place}: not valid Python: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UnreadableSourceError(f"{file}: not valid Python: {error}") from None


def _locate(module: str) -> importlib.machinery.ModuleSpec:
    """Return a module's spec. Unlike find_spec("a.b"), this does not import the package a on the way to b."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    name = top
    for part in inner:
        if spec is None or spec.submodule_search_locations is None:
            break
        name = f"{name}.{part}"
        spec = importlib.machinery.PathFinder.find_spec(name, list(spec.submodule_search_locations))
    if spec is None or spec.name != module:
        raise UnreadableSourceError(f'there is no module "{module}"')
    return spec


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """Return the module that `from ... import` names, relative ones resolved."""
    if not node.level:
        return node.module or ""
    is_package = _locate(module).submodule_search_locations is not None
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])
