"""Remove artifacts that nothing needs, and remains of killed and refused commands.

Nothing is removed that is locked, open in another process, or not made by retroflow. docs/artifacts.md has the rules.
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

from retroflow.errors import DamagedDataError, RetroflowError, UsageError
from retroflow.runs.needed import all_needed, is_abandoned, with_parents
from retroflow.runs.overview import is_empty_run
from retroflow.store.artifact import LOCKS_FOLDER, LOGS_FOLDER, VERIFIED_FOLDER
from retroflow.store.held import is_held, users_of
from retroflow.store.manifest import KINDS, NAME, read_manifest
from retroflow.store.pieces import PIECES_ENDING

PIECES_SECONDS = 3600.0
"""What was written in the last hour may be of a process on another machine, which holds no lock here."""

_REMOVED = ".removed"
_NAME = re.compile(rf"({NAME})(\.partial|\{PIECES_ENDING}|\{_REMOVED})?")
_LOCK = re.compile(rf"({NAME})(?:\.shard-\d+-of-\d+)?\.(?:lock|owner)")


@dataclass(frozen=True)
class Leftover:
    """Something that may be removed.

    Attributes:
        path: a file or a folder.
        num_bytes: of all files in it.
        reason: why it is not needed.
    """

    path: Path
    num_bytes: int
    reason: str


@dataclass(frozen=True)
class Survey:
    """The content of a folder of artifacts and of folders of runs.

    Attributes:
        artifacts: the folder.
        runs: every run.
        needed: names of needed artifacts, including those from which they were made.
        leftovers: what may be removed, in order: an artifact before those from which it was made.
        left_alone: path -> why it is kept, although nothing needs it.
    """

    artifacts: Path
    runs: tuple[Path, ...]
    needed: frozenset[str]
    leftovers: tuple[Leftover, ...]
    left_alone: dict[Path, str]

    @property
    def num_bytes(self) -> int:
        """Bytes of everything that may be removed."""
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
    """Find what nothing needs; changes nothing.

    Args:
        artifacts: the folder of artifacts (data.artifacts_folder).
        runs_folders: folders of runs and exported models; artifacts that only others need count as unneeded.
        recipes: recipe files whose artifacts are needed, too.

    Raises:
        UsageError: a folder does not exist, the needs of a run or a recipe are unknown, or nothing is needed at all.
        DamagedDataError: the description of a run, or of a needed artifact, cannot be read.
        RetroflowError: a process is making artifacts there.
    """
    if not artifacts.is_dir():
        raise UsageError(
            f'there is no folder "{artifacts}"; give the folder of artifacts (data.artifacts_folder of the recipe).'
        )
    _refuse_if_locked(artifacts)
    needed, runs = all_needed(runs_folders, recipes, artifacts)
    if not needed:
        places = ", ".join(map(str, runs_folders))
        raise UsageError(
            f'no run in "{places}" needs any artifact, so all of "{artifacts}" would be removed. Give the folder of '
            "your runs, or a recipe whose artifacts you need; to remove everything, delete the folder yourself."
        )
    used = _used(artifacts)
    whole = [name for name in used if (artifacts / name).suffix == "" and not _unidentified(artifacts / name)]
    kept = needed | with_parents(whole, artifacts)
    left_alone: dict[Path, str] = {}
    leftovers = [*_unneeded(artifacts, needed, kept, used, left_alone), *_empty_runs(runs, left_alone)]
    leftovers += _logs(artifacts / LOGS_FOLDER, left_alone)
    gone = {leftover.path.name for leftover in leftovers}
    leftovers += _traces(artifacts, gone)
    return Survey(artifacts, tuple(runs), frozenset(needed), tuple(leftovers), left_alone)


def remove(found: Survey) -> Iterator[Leftover]:
    """Remove what a survey found; yield each thing after its removal. What is in use now is kept.

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
    """Remove a file, or a folder under its lock; return False if another process holds it, or if it does not exist."""
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
            if is_extra:  # a waiting process notices that it is gone, and makes a new one
                lock.unlink(missing_ok=True)
    except Timeout:
        return False
    return True


def _remove_folder(path: Path) -> None:
    """Rename a folder, then remove it: a kill in between leaves no half artifact under its name."""
    gone = path if path.name.endswith(_REMOVED) else path.with_name(f"{path.name}{_REMOVED}")
    if gone != path:
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(path, gone)
    shutil.rmtree(gone)


def _refuse_if_locked(artifacts: Path) -> None:
    for lock in sorted((artifacts / LOCKS_FOLDER).glob("*.lock")):
        if is_held(lock):
            raise RetroflowError(f'"{artifacts}": a process is making {lock.stem}; run this again when it has ended.')


def _used(artifacts: Path) -> dict[str, int]:
    """Return the names of artifacts that another process has open, with such a process."""
    root = Path(os.path.realpath(artifacts))
    used = {path.relative_to(root).parts[0]: process for path, process in users_of(artifacts).items()}
    return {name: process for name, process in used.items() if _NAME.fullmatch(name)}


def _unneeded(
    artifacts: Path, needed: set[str], kept: set[str], used: Mapping[str, int], left_alone: dict[Path, str]
) -> Iterator[Leftover]:
    """Return artifacts and unfinished ones that may be removed, an artifact before those from which it was made."""
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
            left_alone[path] = "an artifact that a process has open was made from it"
        elif ending == PIECES_ENDING and (name in needed and not (artifacts / name).exists()):
            continue
        elif ending == PIECES_ENDING and time.time() - _newest(path) < PIECES_SECONDS:
            left_alone[path] = "written to in the last hour, perhaps by a shard on another machine"
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
    """Return why an artifact's folder may not be what its name says; empty if it is."""
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


def _logs(folder: Path, left_alone: dict[Path, str]) -> Iterator[Leftover]:
    """Return logs and jobs of calls of `prepare --on` that have ended."""
    for call in sorted(folder.glob("*")):
        if is_held(call / ".lock"):
            left_alone[call] = "prepare --on is running"
        elif time.time() - _newest(call) < PIECES_SECONDS:
            left_alone[call] = "written to in the last hour, perhaps by a job on another machine"
        else:
            yield Leftover(call, _size(call), "logs of prepare --on")


def _traces(artifacts: Path, gone: set[str]) -> Iterator[Leftover]:
    """Return locks and records of checked bytes of artifacts that do not exist or will be removed."""
    there = {
        match[1] for path in artifacts.iterdir() if path.name not in gone and (match := _NAME.fullmatch(path.name))
    }
    for path in sorted((artifacts / LOCKS_FOLDER).glob("*")):
        match = _LOCK.fullmatch(path.name)
        if match and match[1] not in there and path.is_file():
            yield Leftover(path, _size(path), "lock of an artifact that does not exist")
    for path in sorted((artifacts / VERIFIED_FOLDER).glob("*.json")):
        if _NAME.fullmatch(path.stem) and path.stem not in there:
            yield Leftover(path, _size(path), "record of an artifact that does not exist")


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in (path, *path.rglob("*")) if not file.is_dir())


def _newest(folder: Path) -> float:
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
