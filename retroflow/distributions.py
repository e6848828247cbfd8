"""The installed distributions, read one at a time, so that a damaged one does not affect the others."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_read: Callable[[metadata.Distribution], metadata.EntryPoints] = metadata.Distribution.entry_points.fget  # type: ignore[attr-defined]
"""Python's own reader, which raises; `shield_libraries` replaces it."""


@dataclass(frozen=True)
class Declaration:
    """One entry point.

    Attributes:
        name, value: as declared, "annoy" and "retroflow_annoy:AnnoyRetriever".
        owner: distribution and version, "retroflow-annoy 0.1.0".
    """

    name: str
    value: str
    owner: str


def declarations(group: str) -> list[Declaration]:
    """Return the entry points of a group, of every distribution whose entry points can be read."""
    found = []
    for distribution in _distributions():
        points = _entry_points(distribution)
        if isinstance(points, metadata.EntryPoints):
            chosen = points.select(group=group)
            found += [Declaration(point.name, point.value, _owner(distribution)) for point in chosen]
    return found


def unreadable() -> list[str]:
    """Return a sentence about every distribution, of whatever project, whose entry points cannot be read."""
    sentences = []
    for distribution in _distributions():
        points = _entry_points(distribution)
        if isinstance(points, Exception):
            owner = _owner(distribution)
            reason = f"{type(points).__name__}: {points}"
            sentences.append(
                f"{_folder(distribution) or owner}: entry_points.txt cannot be read ({reason}), so what {owner} "
                f"declares is passed over. Install it again with: {install_again(owner)}"
            )
    return sentences


def missing_requirements(distribution: str) -> list[str]:
    """Return the declared dependencies of a distribution that are not installed, as pip requirements."""
    from packaging.requirements import InvalidRequirement, Requirement

    missing = []
    try:
        lines = metadata.requires(distribution) or []
    except (metadata.PackageNotFoundError, UnicodeDecodeError):
        return []
    for line in lines:
        try:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                metadata.version(requirement.name)
        except InvalidRequirement:
            continue
        except metadata.PackageNotFoundError:
            missing.append(f"{requirement.name}{requirement.specifier}")
    return missing


def install_again(owner: str) -> str:
    """Return the pip command that reinstalls a distribution without its dependencies."""
    return f"pip install --force-reinstall --no-deps {owner.partition(' ')[0]}"


def shield_libraries() -> None:
    """Make libraries importable even if the entry points of some distribution cannot be read.

    torch, Lightning and fsspec read the entry points of all distributions when they are imported. A single file that
    is not UTF-8, of any project, makes each of these imports fail.
    """
    if not unreadable():
        return

    def entry_points(self: metadata.Distribution) -> metadata.EntryPoints:
        points = _entry_points(self)
        return points if isinstance(points, metadata.EntryPoints) else metadata.EntryPoints()

    metadata.Distribution.entry_points = property(entry_points)  # type: ignore[assignment, method-assign]


def _distributions() -> list[metadata.Distribution]:
    """Return the installed distributions, the first of each name on the path, as Python itself does."""
    first: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        folder = _folder(distribution)
        name = folder.stem.partition("-")[0] if folder is not None else _owner(distribution)
        first.setdefault(name.lower().replace("_", "-").replace(".", "-"), distribution)
    return list(first.values())


def _entry_points(distribution: metadata.Distribution) -> metadata.EntryPoints | Exception:
    try:
        return _read(distribution)
    except Exception as error:  # undecodable, or a line that is not an entry point
        return error


def _folder(distribution: metadata.Distribution) -> Path | None:
    folder = getattr(distribution, "_path", None)  # which has no public name
    return None if folder is None else Path(str(folder))


def _owner(distribution: metadata.Distribution) -> str:
    """Return name and version, from the folder's name if METADATA does not have them."""
    folder = _folder(distribution)
    name, _, version = (folder.stem if folder is not None else "").partition("-")
    try:
        described = distribution.metadata
        name = (described.get_all("Name") or [name])[0]
        version = (described.get_all("Version") or [version])[0]
    except Exception:
        pass  # METADATA that cannot be read
    return f"{name or 'an unnamed distribution'} {version}".strip()
