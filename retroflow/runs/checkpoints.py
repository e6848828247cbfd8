"""Checkpoints that appear whole or not at all, and are verified before use.

Lightning's own writer copies from the temporary folder, which leaves an empty file if it is killed on another
filesystem, and does not fsync. Files are `step-00000200.ckpt` with `step-00000200.ckpt.sha256` beside them. The
checksum is written before the checkpoint gets its name, so a checkpoint without one was tampered with.

Training with FSDP adds one file per rank, `step-00000200.shard-0-of-8` (checkpoint_shards.py). They are on the disk
before the checkpoint that names them. The .sha256 file has the format of sha256sum and lists all files.
"""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from retroflow.errors import DamagedDataError, RetroflowError, UsageError
from retroflow.runs.checkpoint_files import BESIDE, checkpoint_path, checkpoint_step, checksum_path, list_checkpoints
from retroflow.runs.checkpoint_shards import RankShard, join_shards
from retroflow.store.atomic import write_file, write_stream

_SHARDS = "shards"
"""The key of a checkpoint with the names of its shards' files."""


class _HashedFile:
    """A writable file that hashes its content, so that a checkpoint is not read again for its checksum.

    It stores the first error and raises none, because torch's zip writer hides errors behind an assertion of its own,
    or aborts the process. Such errors are a full disk, or a data worker that dies at that moment.
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
        """Do nothing; the opener flushes the file."""


def _save_hashed(values: Any, file: IO[bytes]) -> str:
    """Write `values` with torch; return their SHA-256."""
    hashed = _HashedFile(file)
    torch.save(values, hashed)  # type: ignore[arg-type]
    if hashed.failure is not None:
        raise hashed.failure
    return hashed.digest.hexdigest()


def _write_synced(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    try:
        path.parent.mkdir(exist_ok=True)  # not its parents: a deleted run folder must not be made again
        write_stream(path, write)
    except OSError as error:
        raise RetroflowError(
            f"{path}: the checkpoint could not be written ({error}); free space there and continue with resume='last', "
            "or start a new run in another trainer.runs_folder."
        ) from error


def write_checkpoint(checkpoint: dict[str, Any], path: Path, shards: Mapping[str, str] | None = None) -> None:
    """Write a checkpoint and its checksum so that a kill at any moment leaves a whole checkpoint or none.

    Args:
        checkpoint: tensors and plain values.
        path: of the checkpoint.
        shards: names and SHA-256 of the files that `write_shard` has written, in the order of ranks.

    Raises:
        RetroflowError: the folder cannot be written or the disk is full; nothing is left of the checkpoint.
    """
    shards = dict(shards or {})

    def save(file: IO[bytes]) -> None:
        digests = {path.name: _save_hashed(checkpoint | {_SHARDS: shards}, file), **shards}
        lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()
        path.unlink(missing_ok=True)  # the new checksum must never be beside an older checkpoint of this name
        write_file(checksum_path(path), lines)

    _write_synced(path, save)


def write_shard(shard: RankShard, path: Path) -> str:
    """Write one rank's shard of a checkpoint; return its SHA-256.

    Raises:
        RetroflowError: as for `write_checkpoint`.
    """
    digests: list[str] = []
    _write_synced(path, lambda file: digests.append(_save_hashed(shard, file)))
    return digests[0]


def _checksums(path: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint, its own first."""
    try:
        lines = checksum_path(path).read_text().splitlines()
        checksums = {name: digest for digest, name in (line.split() for line in lines)}
    except (OSError, ValueError) as error:
        raise DamagedDataError(f"{path}: its .sha256 file cannot be read ({error}).") from error
    if next(iter(checksums), None) != path.name:
        raise DamagedDataError(f"{path}: not in {checksum_path(path).name}; the checkpoint is damaged.")
    return checksums


def verify_checkpoint(path: Path, *, rank: int = 0, world_size: int = 1) -> None:
    """Compare the files of a checkpoint with its checksums.

    Args:
        path: the checkpoint.
        rank: this process, of those that divide the work.
        world_size: number of these processes.

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
            raise DamagedDataError(f"{path}: {name} cannot be read ({error}); the checkpoint is damaged.") from error
        if digest != expected:
            raise DamagedDataError(
                f"{path.with_name(name)}: the bytes do not match {checksum_path(path).name}; the checkpoint is damaged."
            )


def _load(path: Path, *, lazily: bool) -> dict[Any, Any]:
    try:
        values: dict[Any, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise DamagedDataError(f"{path}: not a checkpoint that can be loaded safely ({error}).") from error
    return values


def read_head(path: Path) -> dict[str, Any]:
    """Load the plain values of a checkpoint; tensors are read when they are used, sharded ones are None.

    It is not verified, which would take as long as reading it.

    Raises:
        DamagedDataError: it cannot be read, or holds more than tensors and plain values.
    """
    return _load(path, lazily=True)


def open_shards(path: Path, head: dict[str, Any]) -> list[RankShard]:
    """Load the shards of a checkpoint; the rows are read when they are used.

    Args:
        path: the checkpoint.
        head: the result of `read_head`.

    Raises:
        DamagedDataError: one cannot be read, or is not the one that was verified.
    """
    shards = head.get(_SHARDS, {})
    if shards != {name: digest for name, digest in _checksums(path).items() if name != path.name}:
        raise DamagedDataError(
            f"{path}: names other shards than {checksum_path(path).name}; the checkpoint is damaged."
        )
    return [_load(path.with_name(name), lazily=True) for name in shards]


def read_checkpoint(path: Path, *, optimizer: bool = True) -> dict[str, Any]:
    """Load a verified checkpoint to the CPU with torch's safe loader, its tensors whole.

    Args:
        path: the checkpoint.
        optimizer: whether to read the optimizer's states.

    Raises:
        DamagedDataError: the checkpoint does not verify or holds more than tensors and plain values.
    """
    verify_checkpoint(path)
    checkpoint: dict[str, Any] = _load(path, lazily=not optimizer)
    join_shards(checkpoint, open_shards(path, checkpoint), below=None if optimizer else "state_dict")
    return checkpoint


def pick_checkpoint(folder: Path, wanted: str | None = None) -> Path | None:
    """Find and verify the checkpoint of a model: the newest, or the requested one.

    Args:
        folder: the run's checkpoints.
        wanted: a step, the name of a file in the folder, or a path; None for the newest.

    Returns:
        None if the folder has no checkpoint and none is requested.

    Raises:
        UsageError: there is no such checkpoint.
        DamagedDataError: it is damaged; an older one is only used on request.
    """
    paths = list_checkpoints(folder)
    path = paths[0] if wanted is None and paths else None
    if wanted is not None:
        path = _wanted_checkpoint(folder, paths, wanted)
    if path is None:
        return None
    error = _damage_of(path)
    if error is None:
        return path
    if wanted is not None:
        raise error
    intact = next((other for other in paths[1:] if _damage_of(other) is None), None)
    remedy = "no other one is intact; train again" if intact is None else f"take one before it: {_option(intact)}"
    raise DamagedDataError(f"{error} It is the newest of its run; {remedy}.") from error


def _option(path: Path) -> str:
    return f"checkpoint={checkpoint_step(path)}"


def _wanted_checkpoint(folder: Path, paths: list[Path], wanted: str) -> Path:
    if re.fullmatch(r"[0-9]{1,18}", wanted):
        path = checkpoint_path(folder, int(wanted))
    else:
        path = Path(wanted) if Path(wanted).is_file() else folder / wanted
        checkpoint_step(path)
    if not path.is_file():
        steps = ", ".join(str(checkpoint_step(each)) for each in paths) or "none"
        raise UsageError(f"checkpoint='{wanted}': there is no {path}; the run has checkpoints of these steps: {steps}.")
    return path


def _damage_of(path: Path) -> DamagedDataError | None:
    try:
        verify_checkpoint(path)
    except DamagedDataError as error:
        return error
    return None


def newest_verified(folder: Path, *, say: Callable[[str], None]) -> Path | None:
    """Return the newest intact checkpoint; print a line for each damaged one that is skipped.

    Raises:
        DamagedDataError: there are checkpoints but none is intact.
    """
    paths = list_checkpoints(folder)
    for path in paths:
        error = _damage_of(path)
        if error is None:
            return path
        say(f"{error} Trying the checkpoint before it.")
    if paths:
        raise DamagedDataError(f"{folder}: none of the {len(paths)} checkpoints is intact; start a new run.")
    return None


def discard_after(folder: Path, step: int) -> None:
    """Remove checkpoints of later steps, damaged ones too: training continues from `step` and makes them again."""
    for path in list_checkpoints(folder):
        if checkpoint_step(path) > step:
            path.unlink(missing_ok=True)


def sweep(folder: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, remains of killed writes, and checksums and shards without one."""
    for path in list_checkpoints(folder)[max(1, keep) :]:
        path.unlink(missing_ok=True)
    kept = {name for path in list_checkpoints(folder) for name in _files_of(path)}
    for part in folder.iterdir() if folder.is_dir() else ():
        if BESIDE.fullmatch(part.name) and part.name not in kept:
            part.unlink(missing_ok=True)


def _files_of(path: Path) -> set[str]:
    """Return the names of a checkpoint's files; of a damaged one without its shards."""
    try:
        shards = set(_checksums(path))
    except DamagedDataError:
        shards = set()
    return {path.name, checksum_path(path).name} | shards
