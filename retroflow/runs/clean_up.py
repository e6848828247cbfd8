"""What may be removed: artifacts that nothing needs, and what killed and refused commands have left.

Nothing is removed that is locked, open in another process, or that retroflow cannot have made. docs/artifacts.md has
the rules.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from retroflow.errors import DamagedDataError, UsageError, RetroflowError
from retroflow.store.artifact import LOCKS_FOLDER, VERIFIED_FOLDER
from retroflow.store.held import is_held, users_of
from retroflow.store.manifest import KINDS, NAME, read_manifest
from retroflow.store.pieces import PIECES_ENDING
from retroflow.runs.needed import all_needed, is_abandoned, with_parents
from retroflow.runs.overview import is_empty_run

PIECES_SECONDS = 3600.0
"""Pieces that were written in the last hour may be those of a share on another machine, which holds no lock here."""

_REMOVED = ".removed"
_NAME = re.compile(rf"({NAME})(\.partial|\{PIECES_ENDING}|\{_REMOVED})?")
_LOCK = re.compile(rf"({NAME})(?:\.shard-\d+-of-\d+)?\.(?:lock|owner)")


@dataclass(frozen=True)
class Leftover:
    """Something that may go.

    Attributes:
        path: a file or a folder.
        num_bytes: of all files in it.
        reason: why nothing needs it.
    """

    path: Path
    num_bytes: int
    reason: str


@dataclass(frozen=True)
class Survey:
    """What was found in a folder of artifacts and in folders of runs.

    Attributes:
        artifacts: the folder.
        runs: every run that was found.
        needed: names of artifacts that something needs, those it was made from among them.
        leftovers: what may go, in the order in which it is removed: what was made from others before these.
        left_alone: path -> why it stays, although nothing needs it.
    """

    artifacts: Path
    runs: tuple[Path, ...]
    needed: frozenset[str]
    leftovers: tuple[Leftover, ...]
    left_alone: dict[Path, str]

    @property
    def num_bytes(self) -> int:
        """Of everything that may go."""
        return sum(leftover.num_bytes for leftover in self.leftovers)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "artifacts": str(self.artifacts),
            "runs": list(map(str, self.runs)),
            "needed": sorted(self.needed),
            "leftovers": [vars(leftover) | {"path": str(leftover.path)} for leftover in self.leftovers],
            "left_alone": {str(path): reason for path, reason in self.left_alone.items()},
            "bytes": self.num_bytes,
        }


def survey(artifacts: Path, runs_folders: Sequence[Path], recipes: Sequence[Path] = ()) -> Survey:
    """Look for what nothing needs; touches nothing.

    Args:
        artifacts: the folder of artifacts (data.artifacts_folder).
        runs_folders: where runs and exported models are looked for; what is only needed elsewhere counts as unneeded.
        recipes: recipe files whose artifacts are needed, too.

    Raises:
        UsageError: a folder is not there, nobody can tell what a run or a recipe needs, or nothing is needed at all.
        DamagedDataError: the description of a run, or of a needed artifact, cannot be read.
        RetroflowError: a process makes artifacts there just now.
    """
    if not artifacts.is_dir():
        raise UsageError(f'there is no folder "{artifacts}"; give --artifacts (data.artifacts_folder of the recipe).')
    _refuse_if_locked(artifacts)
    needed, runs = all_needed(runs_folders, recipes, artifacts)
    if not needed:
        places = ", ".join(map(str, runs_folders))
        raise UsageError(
            f'no run in "{places}" needs any artifact, so that all of "{artifacts}" would go. Give the folder of your '
            "runs with --runs, or a recipe with --recipe; to be rid of everything, remove the folder yourself."
        )
    used = _used(artifacts)
    whole = [name for name in used if (artifacts / name).suffix == "" and not _unidentified(artifacts / name)]
    kept = needed | with_parents(whole, artifacts)
    left_alone: dict[Path, str] = {}
    leftovers = [*_unneeded(artifacts, needed, kept, used, left_alone), *_empty_runs(runs, left_alone)]
    gone = {leftover.path.name for leftover in leftovers}
    leftovers += _traces(artifacts, gone)
    return Survey(artifacts, tuple(runs), frozenset(needed), tuple(leftovers), left_alone)


def remove(found: Survey) -> Iterator[Leftover]:
    """Remove what a survey found; gives out each thing once it is gone. One that is in use by now stays.

    Raises:
        RetroflowError: something cannot be removed.
    """
    locks = found.artifacts / LOCKS_FOLDER
    for leftover in found.leftovers:
        try:
            is_gone = _remove(leftover.path, locks)
        except OSError as error:
            place = error.filename or leftover.path
            raise RetroflowError(f'"{place}": cannot be removed ({error.strerror}).') from error
        if is_gone:
            yield leftover


def _remove(path: Path, locks: Path) -> bool:
    """Remove a file, or a folder, while its lock is held; False if somebody else holds it, or if it is gone."""
    if not path.exists():
        return False
    name = _NAME.fullmatch(path.name)
    if path.suffix == ".lock":
        lock = path
    elif not path.is_dir():
        path.unlink(missing_ok=True)
        return True
    else:
        lock = path / ".lock" if name is None else locks / f"{name[1]}.lock"
    lock.parent.mkdir(exist_ok=True)
    is_extra = path == lock or not lock.exists()
    try:
        with FileLock(lock, timeout=0):
            if path != lock:
                _remove_folder(path)
            if is_extra:  # whoever waits for it sees that it is gone, and makes a new one
                lock.unlink(missing_ok=True)
    except Timeout:
        return False
    return True


def _remove_folder(path: Path) -> None:
    """Remove a folder by way of another name: a kill in between leaves no half artifact under the name of a whole."""
    gone = path if path.name.endswith(_REMOVED) else path.with_name(f"{path.name}{_REMOVED}")
    if gone != path:
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(path, gone)
    shutil.rmtree(gone)


def _refuse_if_locked(artifacts: Path) -> None:
    for lock in sorted((artifacts / LOCKS_FOLDER).glob("*.lock")):
        if is_held(lock):
            raise RetroflowError(
                f'"{artifacts}": a process is making {lock.stem} just now; run this again when it has ended.'
            )


def _used(artifacts: Path) -> dict[str, int]:
    """Names of artifacts that another process has open, with a process that has."""
    root = Path(os.path.realpath(artifacts))
    used = {path.relative_to(root).parts[0]: process for path, process in users_of(artifacts).items()}
    return {name: process for name, process in used.items() if _NAME.fullmatch(name)}


def _unneeded(
    artifacts: Path, needed: set[str], kept: set[str], used: Mapping[str, int], left_alone: dict[Path, str]
) -> Iterator[Leftover]:
    """Artifacts and unfinished ones that may go; what was made from others comes first."""
    entries = [(path, _NAME.fullmatch(path.name)) for path in artifacts.iterdir() if not path.name.startswith(".")]
    order = {kind: number for number, kind in enumerate(reversed(KINDS))}
    for path, match in sorted(entries, key=lambda entry: (order.get(entry[0].name.partition("-")[0], -1), entry[0])):
        if match is None or path.is_symlink() or not path.is_dir():
            left_alone[path] = "not made by retroflow"
            continue
        name, ending = match[1], match[2]
        if name in needed and (ending is None or (ending == ".partial" and not (artifacts / name).exists())):
            continue
        if path.name in used:
            left_alone[path] = f"process {used[path.name]} has it open"
        elif name in kept and ending is None:
            left_alone[path] = "what a process has open was made from it"
        elif ending == PIECES_ENDING and (name in needed and not (artifacts / name).exists()):
            continue
        elif ending == PIECES_ENDING and time.time() - _newest(path) < PIECES_SECONDS:
            left_alone[path] = "written to in the last hour, perhaps by a share on another machine"
        elif ending is None and (problem := _unidentified(path)):
            left_alone[path] = problem
        else:
            yield Leftover(path, _size(path), _REASONS[ending])


_REASONS = {
    None: "no run needs it",
    ".partial": "unfinished",
    PIECES_ENDING: "pieces of unfinished work",
    _REMOVED: "half removed",
}


def _unidentified(folder: Path) -> str:
    """Why an artifact's folder is not surely what its name says; empty if it is."""
    try:
        manifest = read_manifest(folder)
    except (DamagedDataError, OSError):
        return "its manifest cannot be read; remove the folder yourself if you know what it is"
    return "" if manifest.name == folder.name else f"it holds {manifest.name}"


def _empty_runs(runs: Sequence[Path], left_alone: dict[Path, str]) -> Iterator[Leftover]:
    for run in filter(is_empty_run, runs):
        if is_abandoned(run):
            yield Leftover(run, _size(run), "a run in which nothing was trained")
        else:
            left_alone[run] = "a run is just beginning there"


def _traces(artifacts: Path, gone: set[str]) -> Iterator[Leftover]:
    """Locks, and notes of checked bytes, of artifacts that are not there or will be gone."""
    there = {
        match[1] for path in artifacts.iterdir() if path.name not in gone and (match := _NAME.fullmatch(path.name))
    }
    for path in sorted((artifacts / LOCKS_FOLDER).glob("*")):
        match = _LOCK.fullmatch(path.name)
        if match and match[1] not in there and path.is_file():
            yield Leftover(path, _size(path), "lock of an artifact that is not there")
    for path in sorted((artifacts / VERIFIED_FOLDER).glob("*.json")):
        if _NAME.fullmatch(path.stem) and path.stem not in there:
            yield Leftover(path, _size(path), "record of an artifact that is not there")


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in (path, *path.rglob("*")) if not file.is_dir())


def _newest(folder: Path) -> float:
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
