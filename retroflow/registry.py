"""Registry: names to components, as a table of strings that imports nothing until a name is asked for.

Built-in names come from a literal table (retroflow/components.py), further ones from the entry points of installed
distributions; both go through the same door. Whatever is wrong with one entry (library missing, import fails, name
claimed twice) is told to whoever asks for that name, and to nobody else.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from importlib import metadata
from typing import Any, Generic, TypeVar, cast

import retroflow
from retroflow.errors import (
    BrokenPluginError,
    ComponentConflictError,
    MissingExtraError,
    UnknownComponentError,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One line of a registry's table.

    Attributes:
        target: "package.module:Attribute".
        extra: the extra of retroflow that installs what the component needs, None if nothing is needed.
        requires: modules that must be importable for the component, as imported ("faiss", not "faiss-cpu").
        light: importing it loads no library, so that a recipe's values can be tried out while it is checked.
        check: "package.module:function", called with the options while a recipe is checked; raises RecipeError for
            values that do not fit each other. Its module loads no library; options that are wrong are left out.
        owner: distribution and version, as "retroflow-usearch 0.1.0"; filled in by the registry.
    """

    target: str
    extra: str | None = None
    requires: tuple[str, ...] = ()
    light: bool = False
    check: str = ""
    owner: str = ""

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]

    @property
    def attribute(self) -> str:
        return self.target.partition(":")[2]


class Registry(Generic[T]):
    """Components of one kind by name.

    Args:
        kind: what a message calls the components, singular ("retriever").
        group: entry-point group that distributions add names by; None closes the table.
        entries: the built-in names.
    """

    def __init__(self, kind: str, group: str | None, entries: Mapping[str, Entry]) -> None:
        self.kind = kind
        self.group = group
        self._builtin = dict(entries)

    def names(self) -> list[str]:
        """Return every name, built-in ones first in the table's order, then those of plugins by alphabet."""
        return list(self._claims)

    def get(self, name: str) -> T:
        """Import and return the component.

        Raises:
            UnknownComponentError: no entry has the name.
            ComponentConflictError: several distributions claim the name.
            MissingExtraError: a library the component needs is not installed.
            BrokenPluginError: the component's module fails to import, or lacks the attribute.
        """
        entry = self.entry(name)
        missing = missing_modules(entry)
        if missing:
            raise MissingExtraError(self._describe_missing(name, entry, missing))
        try:
            found: Any = importlib.import_module(entry.module)
            for part in entry.attribute.split("."):
                found = getattr(found, part)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            raise BrokenPluginError(
                f'{self.kind} "{name}" of {entry.owner} cannot be loaded from "{entry.target}": '
                f"{type(error).__name__}: {error}. {self._repair(entry)}"
            ) from error
        return cast(T, found)

    def entry(self, name: str) -> Entry:
        """Return a name's entry without importing anything.

        Raises:
            UnknownComponentError, ComponentConflictError: as `get`.
        """
        claims = self._claims.get(name)
        if claims is None:
            raise UnknownComponentError(self._describe_unknown(name))
        if len(claims) > 1:
            owners = " and ".join(f'{claim.owner} ("{claim.target}")' for claim in claims)
            raise ComponentConflictError(
                f'{self.kind} "{name}" is claimed by {owners}. Uninstall one of them; other names are not affected.'
            )
        return claims[0]

    def claims(self, name: str) -> tuple[Entry, ...]:
        """Return all entries that claim a name; more than one is a conflict."""
        return tuple(self._claims.get(name, ()))

    def origin(self, name: str) -> str:
        """Return distribution and version of a name, such as "retroflow 0.1.0".

        Raises:
            UnknownComponentError, ComponentConflictError: as `get`.
        """
        return self.entry(name).owner

    def remedy(self, name: str) -> str | None:
        """Return what stands in the way of using a name and how to mend it, None if nothing is known to."""
        try:
            entry = self.entry(name)
        except ComponentConflictError as error:
            return str(error)
        missing = missing_modules(entry)
        return self._describe_missing(name, entry, missing) if missing else None

    @cached_property
    def _claims(self) -> dict[str, list[Entry]]:
        """Every name with its claims. Read once: installing a plugin does not change a running process."""
        own = f"retroflow {retroflow.__version__}"
        claims = {name: [replace(entry, owner=own)] for name, entry in self._builtin.items()}
        for name, entry in sorted(self._plugins(), key=lambda item: (item[0], item[1].owner)):
            same_name = claims.setdefault(name, [])
            if entry not in same_name:  # a distribution found twice on the path is one owner
                same_name.append(entry)
        return claims

    def _plugins(self) -> list[tuple[str, Entry]]:
        if self.group is None:
            return []
        found = []
        for point in metadata.entry_points(group=self.group):
            owner = f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed distribution"
            module = point.value.partition(":")[0].strip()
            target = point.value.partition("[")[0].replace(" ", "")
            found.append((point.name, Entry(target, requires=(module.partition(".")[0],), owner=owner)))
        return found

    def _describe_unknown(self, name: str) -> str:
        near = get_close_matches(name, self.names(), n=3, cutoff=0.5)
        hint = " Did you mean " + " or ".join(f'"{match}"' for match in near) + "?" if near else ""
        remedy = (
            " A name of a plugin is known once its package is installed."
            if self.group
            else " No plugin can add to this table."
        )
        return f'There is no {self.kind} "{name}".{hint} Known: {", ".join(self.names())}.{remedy}'

    def _describe_missing(self, name: str, entry: Entry, missing: list[str]) -> str:
        modules = " and ".join(f'"{module}"' for module in missing)
        return f'{self.kind} "{name}" of {entry.owner} needs the module {modules}. {self._repair(entry)}'

    @staticmethod
    def _repair(entry: Entry) -> str:
        if entry.extra:
            return f'Install it with: pip install "retroflow[{entry.extra}]"'
        distribution = entry.owner.partition(" ")[0]
        return f"Install it again with: pip install --force-reinstall {distribution}"


def missing_modules(entry: Entry) -> list[str]:
    """Return the required modules that are not installed; looks for them without importing them."""
    return [module for module in entry.requires if not _is_installed(module)]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package is missing; sys.modules holds None or no spec
        return False
