"""Checkpoints that are whole or not there: written aside, synced, renamed, checksummed, verified before use.

Lightning's own writer goes through the temporary folder and a copy, which leaves an empty file when it is killed on
another filesystem, and syncs nothing. Files are `step-00000200.ckpt` with `step-00000200.ckpt.sha256` beside them;
the checksum is in place before the checkpoint gets its name, so a named checkpoint without one was tampered with.

Training with FSDP adds a file a rank, `step-00000200.share-0-of-8` (shares.py). They are on the disk before the
checkpoint that names them, and are leftovers without it. The .sha256 file is as sha256sum writes it, and lists all.
"""

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from retroflow.errors import DamagedDataError, UsageError, RetroflowError
from retroflow.runs.checkpoint_shards import Share, join_shares
from retroflow.store.atomic import write_file, write_stream

_SHARES = "shares"
"""The key of a checkpoint that names the files of its shares."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies."""
    return folder / f"step-{step:08d}.ckpt"


_NAME = re.compile(r"step-([0-9]{8,})\.ckpt")
_BESIDE = re.compile(r"step-[0-9]{8,}\.(ckpt\.sha256|share-[0-9]+-of-[0-9]+|.*\.tmp)")
"""Files that belong to a checkpoint, or are left of one that was being written when the process was killed."""


def checkpoint_step(path: Path) -> int:
    """The optimizer step a checkpoint was written at.

    Raises:
        UsageError: it does not have the name of a checkpoint.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise UsageError(f"{path}: not named as a checkpoint, such as step-00000200.ckpt; give it its name back")
    return int(match[1])


def share_path(path: Path, rank: int, world_size: int) -> Path:
    """The file with what one rank has of a checkpoint."""
    return path.with_name(f"{path.stem}.share-{rank}-of-{world_size}")


def checksum_path(path: Path) -> Path:
    """The file with the SHA-256 of a checkpoint."""
    return path.with_name(path.name + ".sha256")


class _HashedFile:
    """A writable file that hashes what passes through, so that a checkpoint is not read again for its checksum.

    It raises nothing but keeps the first failure: torch's zip writer hides an error behind an assertion of its own, or
    aborts the process. A full disk is one; a data worker that dies just then raises wherever Python is.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.failure: Exception | None = None

    def write(self, data: Any) -> int:
        try:
            if self.failure is None:
                self.digest.update(data)
                self._file.write(data)
        except Exception as error:
            self.failure = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Leave it to whoever has opened the file."""


def _save_hashed(values: Any, file: IO[bytes]) -> str:
    """Let torch write `values`; returns their SHA-256."""
    hashed = _HashedFile(file)
    torch.save(values, hashed)  # type: ignore[arg-type]
    if hashed.failure is not None:
        raise hashed.failure
    return hashed.digest.hexdigest()


def _write_synced(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    try:
        path.parent.mkdir(exist_ok=True)  # not its parents: a run folder that is gone must not be made anew
        write_stream(path, write)
    except OSError as error:
        raise RetroflowError(
            f"{path}: the checkpoint could not be written ({error}); free space there and continue with --resume, or "
            "start a new run in another trainer.runs_folder"
        ) from error


def write_checkpoint(checkpoint: dict[str, Any], path: Path, shares: Mapping[str, str] | None = None) -> None:
    """Write a checkpoint and its checksum so that a kill at any moment leaves a whole checkpoint or none.

    Args:
        checkpoint: tensors and plain values.
        path: where to.
        shares: names and SHA-256 of the files beside it that `write_share` has written, in the order of ranks.

    Raises:
        RetroflowError: the folder cannot be written or the disk is full; nothing of the checkpoint stays.
    """
    shares = dict(shares or {})

    def save(file: IO[bytes]) -> None:
        digests = {path.name: _save_hashed(checkpoint | {_SHARES: shares}, file), **shares}
        lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()
        path.unlink(missing_ok=True)  # an older checkpoint of this name must never meet the new checksum
        write_file(checksum_path(path), lines)

    _write_synced(path, save)


def write_share(share: Share, path: Path) -> str:
    """Write what one rank has of a checkpoint; returns its SHA-256.

    Raises:
        RetroflowError: as for `write_checkpoint`.
    """
    digests: list[str] = []
    _write_synced(path, lambda file: digests.append(_save_hashed(share, file)))
    return digests[0]


def _checksums(path: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint, the one with its name first."""
    try:
        lines = checksum_path(path).read_text().splitlines()
        checksums = {name: digest for digest, name in (line.split() for line in lines)}
    except (OSError, ValueError) as error:
        raise DamagedDataError(f"{path}: its .sha256 file cannot be read ({error})") from error
    if next(iter(checksums), None) != path.name:
        raise DamagedDataError(f"{path}: not in {checksum_path(path).name}; the checkpoint is damaged")
    return checksums


def verify_checkpoint(path: Path, *, rank: int = 0, world_size: int = 1) -> None:
    """Compare the files of a checkpoint with its checksums.

    Args:
        path: the checkpoint.
        rank: this process, of those that share the work.
        world_size: how many they are.

    Raises:
        DamagedDataError: a file, or the checksums, is missing or differs.
    """
    for number, (name, expected) in enumerate(_checksums(path).items()):
        if number % world_size != rank:
            continue
        try:
            with path.with_name(name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DamagedDataError(f"{path}: {name} cannot be read ({error}); the checkpoint is damaged") from error
        if digest != expected:
            raise DamagedDataError(
                f"{path.with_name(name)}: the bytes do not match {checksum_path(path).name}; the checkpoint is damaged"
            )


def _load(path: Path, *, lazily: bool) -> dict[Any, Any]:
    try:
        values: dict[Any, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise DamagedDataError(f"{path}: not a checkpoint that can be loaded safely ({error})") from error
    return values


def read_head(path: Path) -> dict[str, Any]:
    """Load the plain values of a checkpoint; tensors stay on the disk until they are used, sharded ones are None.

    It is not verified, which takes as long as reading it.

    Raises:
        DamagedDataError: it cannot be read, or holds more than tensors and plain values.
    """
    return _load(path, lazily=True)


def open_shares(path: Path, head: dict[str, Any]) -> list[Share]:
    """Load the shares of a checkpoint; the rows stay on the disk until they are used.

    Args:
        path: the checkpoint.
        head: what `read_head` gave for it.

    Raises:
        DamagedDataError: one cannot be read, or is not the one that was verified.
    """
    shares = head.get(_SHARES, {})
    if shares != {name: digest for name, digest in _checksums(path).items() if name != path.name}:
        raise DamagedDataError(f"{path}: names other shares than {checksum_path(path).name}; the checkpoint is damaged")
    return [_load(path.with_name(name), lazily=True) for name in shares]


def read_checkpoint(path: Path, *, optimizer: bool = True) -> dict[str, Any]:
    """Load a verified checkpoint to the CPU with torch's safe loader, its tensors whole.

    Args:
        path: the checkpoint.
        optimizer: whether the optimizer's states are wanted; if not they stay on the disk.

    Raises:
        DamagedDataError: the checkpoint does not verify or holds more than tensors and plain values.
    """
    verify_checkpoint(path)
    checkpoint: dict[str, Any] = _load(path, lazily=not optimizer)
    join_shares(checkpoint, open_shares(path, checkpoint), below=None if optimizer else "state_dict")
    return checkpoint


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a folder, newest step first; files that somebody named otherwise are passed over."""
    named = [path for path in folder.glob("step-*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(named, key=checkpoint_step, reverse=True)


def pick_checkpoint(folder: Path, wanted: str | None = None) -> Path | None:
    """Find the checkpoint that a model is taken from: the newest, or the one that is asked for, and verify it.

    Args:
        folder: the run's checkpoints.
        wanted: a step, the name of a file in the folder, or a path; None for the newest.

    Returns:
        None if the folder has no checkpoint and none is asked for.

    Raises:
        UsageError: there is no such checkpoint.
        DamagedDataError: it is damaged; an older one is taken only when it is asked for.
    """
    paths = list_checkpoints(folder)
    path = paths[0] if wanted is None and paths else None
    if wanted is not None:
        path = _wanted_checkpoint(folder, paths, wanted)
    if path is None:
        return None
    try:
        verify_checkpoint(path)
    except DamagedDataError as error:
        if wanted is not None:
            raise
        intact = next((other for other in paths[1:] if _is_intact(other)), None)
        remedy = "no other one is intact; train again" if intact is None else f"take one before it: {_option(intact)}"
        raise DamagedDataError(f"{error}. It is the newest of its run; {remedy}") from error
    return path


def _option(path: Path) -> str:
    return f"--checkpoint {checkpoint_step(path)}"


def _wanted_checkpoint(folder: Path, paths: list[Path], wanted: str) -> Path:
    if re.fullmatch(r"[0-9]{1,18}", wanted):
        path = checkpoint_path(folder, int(wanted))
    else:
        path = Path(wanted) if Path(wanted).is_file() else folder / wanted
        checkpoint_step(path)
    if not path.is_file():
        steps = ", ".join(str(checkpoint_step(each)) for each in paths) or "none"
        raise UsageError(f"--checkpoint {wanted}: there is no {path}; the run has checkpoints of these steps: {steps}")
    return path


def _is_intact(path: Path) -> bool:
    try:
        verify_checkpoint(path)
    except DamagedDataError:
        return False
    return True


def newest_verified(folder: Path, *, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies; says so for each damaged one that is passed over.

    Raises:
        DamagedDataError: there are checkpoints and none of them verifies.
    """
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            verify_checkpoint(path)
        except DamagedDataError as error:
            say(f"{error}; trying the checkpoint before it")
        else:
            return path
    if paths:
        raise DamagedDataError(
            f"{folder}: none of the {len(paths)} checkpoints is intact; train anew, by fit without --resume"
        )
    return None


def discard_after(folder: Path, step: int) -> None:
    """Remove checkpoints of later steps, damaged ones among them: training goes on from `step` and remakes them."""
    for path in list_checkpoints(folder):
        if checkpoint_step(path) > step:
            path.unlink(missing_ok=True)


def sweep(folder: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, leftovers of killed writes, checksums and shares without a file."""
    for path in list_checkpoints(folder)[max(1, keep) :]:
        path.unlink(missing_ok=True)
    kept = {name for path in list_checkpoints(folder) for name in _files_of(path)}
    for part in folder.iterdir() if folder.is_dir() else ():
        if _BESIDE.fullmatch(part.name) and part.name not in kept:
            part.unlink(missing_ok=True)


def _files_of(path: Path) -> set[str]:
    """Names of a checkpoint's files; of a damaged one without its shares."""
    try:
        shares = set(_checksums(path))
    except DamagedDataError:
        shares = set()
    return {path.name, checksum_path(path).name} | shares
