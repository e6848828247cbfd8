"""Registry: a table from names to components that imports nothing until a name is used.

Built-in names come from a literal table (retroflow/components.py), others from the entry points of installed
distributions. A problem of one entry (missing library, failing import, a name claimed twice) is an error only for
commands that use that name. A plugin with the name of a built-in component is ignored.
"""

import errno
import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Generic, TypeVar, cast

from retroflow.distributions import Declaration, declarations, install_again, missing_requirements
from retroflow.errors import (
    BrokenPluginError,
    ComponentConflictError,
    ComponentError,
    MissingExtraError,
    RetroflowError,
    UnknownComponentError,
    words_of,
)
from retroflow.version import __version__

_TARGET = re.compile(r"[^\W\d]\w*(\.\w+)*:\w+(\.\w+)*")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One line of a registry's table.

    Attributes:
        target: "package.module:Attribute".
        extra: the extra of retroflow that installs what the component needs, None if nothing is needed.
        requires: modules that the component needs, as imported ("faiss", not "faiss-cpu").
        light: importing it loads no library, so checking a recipe may try out its values.
        check: "package.module:function", called with the options while a recipe is checked; raises UsageError for
            values that do not fit each other. Its module loads no library; options that are wrong are left out.
        needs: sections of a recipe that must name something for it, though others can do without.
        parts: options that are components of the same kind themselves, each with the name that it has by default.
        owner: distribution and version, as "retroflow-usearch 0.1.0"; filled in by the registry.
    """

    target: str
    extra: str | None = None
    requires: tuple[str, ...] = ()
    light: bool = False
    check: str = ""
    needs: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""

    @property
    def is_plugin(self) -> bool:
        return self.distribution != "retroflow"

    @property
    def distribution(self) -> str:
        return self.owner.partition(" ")[0]

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]

    @property
    def attribute(self) -> str:
        return self.target.partition(":")[2]


@dataclass
class _Table:
    """Every name with its claims, and messages about ignored entry points, by name."""

    claims: dict[str, list[Entry]] = field(default_factory=dict)
    passed_over: dict[str, list[str]] = field(default_factory=dict)


class Registry(Generic[T]):
    """Components of one kind by name.

    Args:
        kind: the word for such a component in messages, singular ("retriever").
        group: entry-point group for plugins.
        entries: the built-in names.
        protocol: what every component made must have, a name of `retroflow.protocols`; empty for anything.
    """

    def __init__(self, kind: str, group: str, entries: Mapping[str, Entry], protocol: str = "") -> None:
        self.kind = kind
        self.group = group
        self.protocol = protocol
        self._builtin = dict(entries)
        self._warned: set[str] = set()

    def names(self) -> list[str]:
        """Return every name: built-in ones in the table's order, then those of plugins in alphabetical order."""
        return list(self._table.claims)

    def get(self, name: str) -> T:
        """Import and return the component.

        Raises:
            UnknownComponentError: no entry has the name.
            ComponentConflictError: several distributions claim the name.
            MissingExtraError: a library the component needs is not installed.
            BrokenPluginError: the component's module fails to import, or lacks the attribute.
        """
        entry = self.entry(name)
        self._warn_once(name)
        missing = missing_modules(entry)
        if missing:
            raise MissingExtraError(self._describe_missing(name, entry, missing))
        where = f'{self.kind} "{name}" of {entry.owner} cannot be loaded from "{entry.target}"'
        try:
            with _announce_plugin(self.kind, name, entry):
                found: Any = importlib.import_module(entry.module)
            for part in entry.attribute.split("."):
                found = getattr(found, part)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            if isinstance(error, ModuleNotFoundError) and error.name and not is_installed(error.name):
                library = error.name.partition(".")[0]
                raise BrokenPluginError(f"{where}: {self.describe_missing_library(name, [library])}") from error
            reason = f"{type(error).__name__}: {words_of(error)}".removesuffix(": ").removesuffix(".")
            if isinstance(error, MemoryError):
                reason = f"there is not enough memory to load it ({reason})"
            raise BrokenPluginError(f"{where}: {reason}. {_advice(entry, error)}") from error
        return cast(T, found)

    def entry(self, name: str) -> Entry:
        """Return a name's entry without importing anything.

        Raises:
            UnknownComponentError, ComponentConflictError: as `get`.
            BrokenPluginError: the entry point is not of the form "package.module:Name".
        """
        claims = self._table.claims.get(name)
        if claims is None:
            raise UnknownComponentError(self._describe_unknown(name))
        if len(claims) > 1:
            owners = " and ".join(f'{claim.owner} ("{claim.target}")' for claim in claims)
            one_of = " or ".join(f"pip uninstall {claim.distribution}" for claim in claims)
            raise ComponentConflictError(
                f'{self.kind} "{name}" is claimed by {owners}. Uninstall the one that you do not need ({one_of}); '
                "other names are not affected."
            )
        if not _TARGET.fullmatch(claims[0].target):
            raise BrokenPluginError(
                f'{self.kind} "{name}" of {claims[0].owner}: its entry point is "{claims[0].target}", and '
                '"package.module:Name" is needed. Ask its authors.'
            )
        return claims[0]

    def claims(self, name: str) -> tuple[Entry, ...]:
        """Return all entries that claim a name; more than one is a conflict."""
        return tuple(self._table.claims.get(name, ()))

    def passed_over(self, name: str | None = None) -> list[str]:
        """Return a message about every ignored entry point, or about those with a certain name."""
        every = self._table.passed_over
        return list(every.get(name, ())) if name is not None else [one for some in every.values() for one in some]

    def origin(self, name: str) -> str:
        """Return distribution and version of a name, such as "retroflow 0.1.0".

        Raises:
            UnknownComponentError, ComponentConflictError: as `get`.
        """
        return self.entry(name).owner

    def remedy(self, name: str) -> str | None:
        """Return why a name cannot be used and what to do, None if nothing is known."""
        try:
            entry = self.entry(name)
        except (ComponentConflictError, BrokenPluginError) as error:
            return str(error)
        missing = missing_modules(entry)
        return self._describe_missing(name, entry, missing) if missing else None

    def describe_missing_library(self, name: str, modules: list[str]) -> str:
        """Return a message about modules that are not installed, with the pip command that installs them."""
        entry = self.entry(name)
        needed = f"it needs the module {_quoted(modules)}, which is not installed. "
        if entry.extra:
            return f'{needed}Install it with: pip install "retroflow[{entry.extra}]"'
        declared = missing_requirements(entry.distribution)
        if declared:
            return f"{needed}{entry.owner} declares to need {_pip_line(declared)}"
        return f"{needed}{entry.owner} does not declare which package brings it; ask its authors."

    @cached_property
    def _table(self) -> _Table:
        """Return the table, read once: installing a plugin does not change a running process."""
        own = f"retroflow {__version__}"
        table = _Table({name: [replace(entry, owner=own)] for name, entry in self._builtin.items()})
        for point in sorted(declarations(self.group), key=lambda point: (point.name, point.owner)):
            declared = f'{point.owner} declares the {self.kind} "{point.name}" ("{point.value}")'
            if point.name in self._builtin:
                reason = "retroflow itself has that name, so the plugin's is ignored and cannot be used"
            elif not _NAME.fullmatch(point.name):
                reason = "it is ignored, because names have only lower-case letters, digits, - and _"
            else:
                _add_claim(table, point)
                continue
            sentence = f"{declared}: {reason}. Its authors have to give it another name."
            table.passed_over.setdefault(point.name, []).append(sentence)
        return table

    def _warn_once(self, name: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            for sentence in self.passed_over(name):
                _say(f"warning: {sentence}")

    def _describe_unknown(self, name: str) -> str:
        near = get_close_matches(name, self.names(), n=3, cutoff=0.5)
        hint = " Did you mean " + " or ".join(f'"{match}"' for match in near) + "?" if near else ""
        ignored = "".join(f" {sentence}" for sentence in self.passed_over(name))
        return (
            f'There is no {self.kind} "{name}".{hint} Known: {", ".join(self.names())}. A name of a plugin is known '
            f"once its package is installed.{ignored}"
        )

    def _describe_missing(self, name: str, entry: Entry, missing: list[str]) -> str:
        """Return what a component lacks: a library of an extra, or files of its own distribution."""
        remedy = (
            f'Install it with: pip install "retroflow[{entry.extra}]"'
            if entry.extra
            else f"Install it again with: {install_again(entry.owner)}"
        )
        return f'{self.kind} "{name}" of {entry.owner} needs the module {_quoted(missing)}. {remedy}'


@contextmanager
def blaming(failure: str, entry: Entry) -> Iterator[None]:
    """Turn any error of a plugin into one that names it, and keep its output off stdout.

    Errors of built-in components pass unchanged, except a lack of memory. They are reported as bugs of retroflow, or
    with path and remedy.

    Args:
        failure: beginning of the message, 'retriever "annoy" of retroflow-annoy 0.1.0 could not be made'.
        entry: the component's.

    Raises:
        ComponentError: for everything except a RetroflowError, an interrupt and a full disk.
    """
    try:
        with redirect_stdout(sys.stderr if entry.is_plugin else sys.stdout):
            yield
    except (RetroflowError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or not (entry.is_plugin or isinstance(error, MemoryError)):
            raise
        reason = f"{type(error).__name__}: {words_of(error)}".removesuffix(": ")
        if isinstance(error, MemoryError):
            reason = f"there is not enough memory for what its options ask for ({reason})"
        raise ComponentError(f"{failure}: {reason}") from error


def stated_fingerprint(where: str, entry: Entry, fingerprint: Callable[[], object]) -> dict[str, object]:
    """Return a component's fingerprint; a plugin's with the distribution that it comes from.

    Another version of a plugin may give other results, and its author may forget to say so.

    Args:
        where: names the component, 'embedder letters (my-package 1.0)'.
        entry: the component's.
        fingerprint: the component's method.

    Raises:
        ComponentError: it failed, or returned something other than a dictionary of JSON values.
    """
    with blaming(f"{where}: fingerprint() failed", entry):
        values = fingerprint()
    try:
        if not isinstance(values, dict):
            raise TypeError(f"it is of type {type(values).__name__}")
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ComponentError(f"{where}: fingerprint() must be a dict of JSON values; {error}.") from error
    return values | {"distribution": entry.owner} if entry.is_plugin else values


def _add_claim(table: _Table, point: Declaration) -> None:
    module = point.value.partition(":")[0].strip()
    target = point.value.partition("[")[0].replace(" ", "")
    entry = Entry(target, requires=(module.partition(".")[0],), owner=point.owner)
    same_name = table.claims.setdefault(point.name, [])
    if entry not in same_name:  # a repeated line
        same_name.append(entry)


@contextmanager
def _announce_plugin(kind: str, name: str, entry: Entry) -> Iterator[None]:
    """Name a plugin before its code runs, since it may hang or end the process; keep its output off stdout."""
    if not entry.is_plugin or entry.module in sys.modules:
        yield
        return
    _say(f'loading {kind} "{name}" of {entry.owner} from "{entry.target}"')
    with redirect_stdout(sys.stderr):
        yield


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") != "0":  # only one of several processes prints
        return
    with suppress(OSError, AttributeError):  # a closed terminal, or no stderr at all
        print(text, file=sys.stderr, flush=True)


def _advice(entry: Entry, error: BaseException) -> str:
    own_package = entry.module.partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] == own_package:
        return f"Some of its files are missing; install it again with: {install_again(entry.owner)}"
    if entry.is_plugin:
        return f"Ask its authors; if you do not need it: pip uninstall {entry.distribution}"
    if entry.extra:
        return f"The library that retroflow[{entry.extra}] installed may be damaged, or built for another machine."
    return "The installation of retroflow, or of a library that it needs, is damaged."


def _pip_line(requirements: list[str]) -> str:
    words = " ".join(f'"{requirement}"' for requirement in requirements)
    return f"{' and '.join(requirements)}: pip install {words}"


def _quoted(modules: list[str]) -> str:
    return " and ".join(f'"{module}"' for module in modules)


def missing_modules(entry: Entry) -> list[str]:
    """Return the required modules that are not installed; imports nothing."""
    return [module for module in entry.requires if not is_installed(module)]


def is_installed(module: str) -> bool:
    """Return whether the top-level package of a module is installed; imports nothing."""
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):  # sys.modules holds None or no spec
        return False
