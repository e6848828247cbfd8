"""Artifacts: folders named `<kind>-<fingerprint>` that are there whole or not at all, and checked before use.

An artifact is made in the sibling `<name>.partial` under a lock, with its manifest written last, and renamed.
Opening one checks its manifest and the sizes of its files every time, and the hashes of all bytes when a file is
not the one hashed before (inode, size, times); that is remembered in `<artifacts>/.verified/<name>.json`.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from retroflow.errors import RetroflowError, UsageError
from retroflow.store.atomic import canonical_json, sync_folder, write_file
from retroflow.store.hashing import first_difference
from retroflow.store.manifest import Manifest, damaged, fingerprint_of, read_manifest

VERIFIED_FOLDER = ".verified"
LOCKS_FOLDER = ".locks"
INDEX_FOLDER = "retriever"  # of an index artifact, for `CheckedRetriever.load`
KEPT_FOLDER = "kept"  # what an artifact in the making was begun from; never part of an artifact

# What could not be written to VERIFIED_FOLDER: a read-only folder is hashed once in a process, not at every opening.
_verified_here: dict[Path, dict[str, Any]] = {}


def artifact_folder(artifacts: Path, kind: str, inputs: Mapping[str, Any]) -> Path:
    """Where the artifact made from these inputs is, or will be."""
    return artifacts / f"{kind}-{fingerprint_of(inputs)}"


def open_artifact(folder: Path, *, kind: str | None = None) -> Manifest:
    """Check an artifact and return its manifest.

    Raises:
        RetroflowError: there is no such folder.
        UsageError: it is an artifact of another kind.
        DamagedDataError: a file is missing, has another size or other bytes than were written.
    """
    try:
        manifest = read_manifest(folder)
    except (FileNotFoundError, NotADirectoryError):
        if not folder.is_dir():
            raise RetroflowError(f'"{folder}" does not exist; run retroflow prepare to make it.') from None
        raise damaged(folder, "manifest.json is missing", folder) from None
    if kind is not None and manifest.kind != kind:
        raise UsageError(f'"{folder}" holds {manifest.kind}, not {kind}; give the {kind}-... folder.')
    if folder.resolve().name != manifest.name:
        raise damaged(folder / "manifest.json", f'it describes "{manifest.name}", another artifact', folder)
    _verify(folder, manifest)
    return manifest


def _verify(folder: Path, manifest: Manifest) -> None:
    remembered = _read_verified(folder, manifest)
    states: dict[str, list[int]] = {}
    unknown = []
    for name, entry in sorted(manifest.files.items()):
        path = folder / name
        try:
            stat = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise damaged(path, "the file is missing", folder) from None
        if stat.st_size != entry.num_bytes:
            raise damaged(path, f"{stat.st_size:,} bytes, written were {entry.num_bytes:,}", folder)
        states[name] = [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        if remembered.get(name) != states[name]:
            unknown.append((name, entry))
    if not unknown:
        return
    difference = first_difference(folder, unknown)
    if difference is not None:
        name, block = difference
        start, stop = manifest.files[name].block_range(block)
        raise damaged(folder / name, f"bytes {start:,} to {stop:,} do not match their SHA-256", folder)
    _remember_verified(folder, manifest, states)


def _verified_file(folder: Path) -> Path:
    return folder.parent / VERIFIED_FOLDER / f"{folder.name}.json"


def _read_verified(folder: Path, manifest: Manifest) -> Mapping[str, Any]:
    file = _verified_file(folder)
    try:
        values = _verified_here.get(file.absolute()) or json.loads(file.read_bytes())
        files = values["files"] if values["content"] == manifest.content else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # only a memory of work done: without it the files are hashed again
    return files if isinstance(files, dict) else {}


def _remember_verified(folder: Path, manifest: Manifest, states: dict[str, list[int]]) -> None:
    file = _verified_file(folder)
    values = {"content": manifest.content, "files": states}
    try:
        file.parent.mkdir(exist_ok=True)
        write_file(file, canonical_json(values))
    except OSError:  # a read-only folder can be used all the same; it is hashed at every start
        _verified_here[file.absolute()] = values
    else:
        _verified_here.pop(file.absolute(), None)


def parent_of(manifest: Manifest, *, by_content: bool = True) -> dict[str, str]:
    """How a child's manifest names this artifact; `by_content=False` where two builds may differ in bytes."""
    named = {"fingerprint": manifest.fingerprint}
    return named | {"content": manifest.content} if by_content else named


def check_parents(folder: Path, manifest: Manifest, parents: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse an artifact that was made from parents with other bytes than those there are now."""
    for kind, parent in parents.items():
        if manifest.parents.get(kind) != parent:
            raise damaged(
                folder, f"it was made from another {kind}-{parent['fingerprint']} than the present one", folder
            )


@contextmanager
def building(
    folder: Path, say: Callable[[str], None], parents: Mapping[str, Mapping[str, str]] | None = None
) -> Iterator[Path | None]:
    """Hold the lock of an artifact and give the `.partial` folder to make it in.

    Gives None if another process finished the artifact while this one waited for the lock. What an earlier, killed
    process left in the partial folder is still there, unless it was made from parents with other bytes.

    Args:
        folder: the artifact's folder.
        say: told who holds the lock if it has to be waited for.
        parents: what the artifact is made from, as in its manifest.
    """
    with locked(folder.parent, folder.name, say):
        if folder.exists():
            yield None
            return
        partial = folder.with_name(f"{folder.name}.partial")
        _throw_away_work_from_other_parents(partial, canonical_json(parents or {}))
        for unfinished in partial.glob("*.tmp"):  # of a writer that was killed; the lock is ours
            unfinished.unlink()
        yield partial


def _throw_away_work_from_other_parents(partial: Path, parents: bytes) -> None:
    """Make the partial folder, empty if what is in it comes from parents that have since been built differently."""
    marker = partial / KEPT_FOLDER / "parents.json"
    if marker.exists() and marker.read_bytes() != parents:
        shutil.rmtree(partial)
    marker.parent.mkdir(parents=True, exist_ok=True)
    if not marker.exists():
        write_file(marker, parents)


def commit(partial: Path, manifest: Manifest, folder: Path) -> None:
    """Finish an artifact: manifest last, work files away, rename. All its files must have been fsynced."""
    manifest.write(partial)
    shutil.rmtree(partial / KEPT_FOLDER, ignore_errors=True)
    sync_folder(partial)
    os.replace(partial, folder)
    sync_folder(folder.parent)


def finished_manifest(partial: Path) -> Manifest | None:
    """The manifest of work that was killed between its manifest and its rename, else None."""
    try:
        return read_manifest(partial)
    except FileNotFoundError:
        return None


@contextmanager
def locked(artifacts: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of this name, alone among all processes and machines that share the folder.

    Args:
        artifacts: the artifacts folder.
        name: what is locked.
        say: told who holds the lock if it has to be waited for.
    """
    locks = artifacts / LOCKS_FOLDER
    locks.mkdir(parents=True, exist_ok=True)
    owner_file = locks / f"{name}.owner"
    lock = filelock.FileLock(locks / f"{name}.lock", mode=0o666)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"{name}: locked by {_owner(owner_file)}; waiting until it is done")
        lock.acquire(poll_interval=0.2)
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_file(owner_file, f"{socket.gethostname()}/{os.getpid()} since {since}".encode())
        yield
    finally:
        owner_file.unlink(missing_ok=True)
        lock.release()


def _owner(owner_file: Path) -> str:
    try:
        return owner_file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "another process"
