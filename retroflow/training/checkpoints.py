"""Checkpoints that are whole or not there: written aside, synced, renamed, checksummed, verified before use.

Lightning's own writer goes through the temporary folder and a copy, which leaves an empty file when it is killed on
another filesystem, and syncs nothing. Files are `step-00000200.ckpt` with `step-00000200.ckpt.sha256` beside them;
the checksum is in place before the checkpoint gets its name, so a named checkpoint without one was tampered with.
"""

import hashlib
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from retroflow.errors import DamagedDataError, RetroflowError

_READ_BYTES = 1 << 22


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies."""
    return folder / f"step-{step:08d}.ckpt"


def checkpoint_step(path: Path) -> int:
    """The optimizer step a checkpoint was written at."""
    return int(path.stem.removeprefix("step-"))


def checksum_path(path: Path) -> Path:
    """The file with the SHA-256 of a checkpoint."""
    return path.with_name(path.name + ".sha256")


class _HashedFile:
    """A writable file that hashes what passes through, so that a checkpoint is not read again for its checksum."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _replace_synced(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a sibling of `path`, sync it, and give it its name; on failure nothing of it stays."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint and its checksum so that a kill at any moment leaves a whole checkpoint or none.

    Raises:
        RetroflowError: the folder cannot be written or the disk is full; nothing of the checkpoint stays.
    """

    def save(file: IO[bytes]) -> None:
        hashed = _HashedFile(file)
        try:
            torch.save(checkpoint, hashed)  # type: ignore[arg-type]
        except RuntimeError as error:
            # torch's zip writer hides what stopped it, such as a full disk, behind an assertion of its own.
            raise hashed.failure or error from None
        line = f"{hashed.digest.hexdigest()}  {path.name}\n".encode()
        path.unlink(missing_ok=True)  # an older checkpoint of this name must never meet the new checksum
        _replace_synced(checksum_path(path), lambda checksum: checksum.write(line))

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace_synced(path, save)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise RetroflowError(
            f"{path}: the checkpoint could not be written ({error}); free space there or choose another "
            "trainer.runs_folder, then go on with --resume"
        ) from error


def verify_checkpoint(path: Path) -> None:
    """Compare a checkpoint with its checksum.

    Raises:
        DamagedDataError: the file, or its checksum, is missing or differs.
    """
    try:
        expected = checksum_path(path).read_text().split()[0]
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except (OSError, IndexError, UnicodeDecodeError) as error:
        raise DamagedDataError(f"{path}: checkpoint or its .sha256 file cannot be read ({error})") from error
    if digest.hexdigest() != expected:
        raise DamagedDataError(f"{path}: the bytes do not match {checksum_path(path).name}; the checkpoint is damaged")


def read_checkpoint(path: Path, *, lazily: bool = False) -> dict[str, Any]:
    """Load a verified checkpoint to the CPU with torch's safe loader.

    Args:
        path: the checkpoint.
        lazily: leave tensors on disk until they are used, to look at the plain values of a large checkpoint.

    Raises:
        DamagedDataError: the checkpoint does not verify or holds more than tensors and plain values.
    """
    verify_checkpoint(path)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise DamagedDataError(f"{path}: not a checkpoint that can be loaded safely ({error})") from error
    return checkpoint


def list_checkpoints(folder: Path) -> list[Path]:
    """All named checkpoints of a folder, newest step first."""
    return sorted(folder.glob("step-*.ckpt"), key=checkpoint_step, reverse=True)


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
    """Remove all but the newest `keep` checkpoints, leftovers of killed writes, and checksums without a file."""
    for path in list_checkpoints(folder)[max(1, keep) :]:
        path.unlink(missing_ok=True)
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)
    for checksum in folder.glob("step-*.ckpt.sha256"):
        if not checksum.with_suffix("").exists():
            checksum.unlink(missing_ok=True)
