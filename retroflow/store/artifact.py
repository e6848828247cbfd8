"""Artifacts: folders named `<kind>-<fingerprint>` that appear whole or not at all, and are checked before use.

An artifact is made in the sibling `<name>.partial` under a lock, with its manifest written last, and then renamed.
Every opening checks the manifest and the sizes of the files. All bytes are hashed if a file is not the one hashed
before (inode, size, times), as recorded in `<artifacts>/.verified/<name>.json`.
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
LOGS_FOLDER = ".cluster-logs"  # of `prepare --on`, a folder for each call
INDEX_FOLDER = "retriever"  # of an index artifact, for `CheckedRetriever.load`
KEPT_FOLDER = "kept"  # what an artifact in the making was begun from; never part of an artifact

# Records that could not be written to VERIFIED_FOLDER: a read-only folder is hashed once per process only.
_verified_here: dict[Path, dict[str, Any]] = {}


def artifact_folder(artifacts: Path, kind: str, inputs: Mapping[str, Any]) -> Path:
    """Return the folder of the artifact with these inputs."""
    return artifacts / f"{kind}-{fingerprint_of(inputs)}"


def open_artifact(folder: Path, *, kind: str | None = None, anew: bool = False) -> Manifest:
    """Check an artifact and return its manifest.

    Args:
        folder: of the artifact.
        kind: that it must have.
        anew: hash all bytes, also of files that were hashed before.

    Raises:
        RetroflowError: there is no such folder.
        UsageError: it is an artifact of another kind.
        DamagedDataError: a file is missing, or its size or bytes differ from what was written.
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
        raise damaged(folder / "manifest.json", f'it describes another artifact, "{manifest.name}"', folder)
    _verify(folder, manifest, {} if anew else _read_verified(folder, manifest))
    return manifest


def _verify(folder: Path, manifest: Manifest, remembered: Mapping[str, Any]) -> None:
    states: dict[str, list[int]] = {}
    unknown = []
    for name, entry in sorted(manifest.files.items()):
        path = folder / name
        try:
            stat = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise damaged(path, "the file is missing", folder) from None
        if stat.st_size != entry.num_bytes:
            raise damaged(path, f"it has {stat.st_size:,} bytes, but {entry.num_bytes:,} were written", folder)
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
        return {}  # a record that only saves work: without it the files are hashed again
    return files if isinstance(files, dict) else {}


def _remember_verified(folder: Path, manifest: Manifest, states: dict[str, list[int]]) -> None:
    file = _verified_file(folder)
    values = {"content": manifest.content, "files": states}
    try:
        file.parent.mkdir(exist_ok=True)
        write_file(file, canonical_json(values))
    except OSError:  # a read-only folder can be used; it is hashed at every start
        _verified_here[file.absolute()] = values
    else:
        _verified_here.pop(file.absolute(), None)


def parent_of(manifest: Manifest, *, by_content: bool = True) -> dict[str, str]:
    """Return this artifact's entry in a child's manifest; `by_content=False` if two builds may differ in bytes."""
    named = {"fingerprint": manifest.fingerprint}
    return named | {"content": manifest.content} if by_content else named


def check_parents(folder: Path, manifest: Manifest, parents: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse an artifact whose parents have changed since it was made."""
    for kind, parent in parents.items():
        if manifest.parents.get(kind) != parent:
            raise damaged(
                folder, f"it was made from another {kind}-{parent['fingerprint']} than the present one", folder
            )


@contextmanager
def building(folder: Path, say: Callable[[str], None]) -> Iterator[Path | None]:
    """Hold the lock of an artifact and yield its `.partial` folder.

    Yields None if another process finished the artifact while this one waited for the lock. Work of a killed process
    is still in the partial folder.

    Args:
        folder: the artifact's folder.
        say: called with the lock's owner if the process has to wait.
    """
    with locked(folder.parent, folder.name, say):
        if folder.exists():
            yield None
            return
        partial = folder.with_name(f"{folder.name}.partial")
        partial.mkdir(exist_ok=True)
        for unfinished in partial.glob("*.tmp"):  # of a killed writer; we hold the lock
            unfinished.unlink()
        yield partial


def commit(partial: Path, manifest: Manifest, folder: Path) -> None:
    """Finish an artifact: write the manifest, remove work files, rename. All its files must have been fsynced."""
    manifest.write(partial)
    shutil.rmtree(partial / KEPT_FOLDER, ignore_errors=True)
    sync_folder(partial)
    os.replace(partial, folder)
    sync_folder(folder.parent)


def finished_manifest(partial: Path) -> Manifest | None:
    """Return the manifest of work that was killed between writing the manifest and the rename, else None."""
    try:
        return read_manifest(partial)
    except FileNotFoundError:
        return None


@contextmanager
def locked(artifacts: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of this name against all processes and machines that use the folder.

    Args:
        artifacts: the artifacts folder.
        name: of the lock.
        say: called with the lock's owner if the process has to wait.
    """
    locks = artifacts / LOCKS_FOLDER
    locks.mkdir(parents=True, exist_ok=True)
    owner_file = locks / f"{name}.owner"
    lock = filelock.FileLock(locks / f"{name}.lock", mode=0o666)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"{name}: locked by {_owner(owner_file)}; waiting")
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
