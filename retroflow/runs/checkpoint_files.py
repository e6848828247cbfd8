"""Names of the files in a run's folder of checkpoints. Nothing here needs torch, so runs are listed quickly."""

import re
from pathlib import Path

from retroflow.errors import UsageError


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of an optimizer step."""
    return folder / f"step-{step:08d}.ckpt"


_NAME = re.compile(r"step-([0-9]{8,})\.ckpt")
BESIDE = re.compile(r"step-[0-9]{8,}\.(ckpt\.sha256|shard-[0-9]+-of-[0-9]+|.*\.tmp)")
"""Files of a checkpoint, or remains of one that was not finished when the process was killed."""


def checkpoint_step(path: Path) -> int:
    """Return the optimizer step of a checkpoint.

    Raises:
        UsageError: it does not have the name of a checkpoint.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise UsageError(f"{path}: not the name of a checkpoint, such as step-00000200.ckpt; restore its name.")
    return int(match[1])


def shard_path(path: Path, rank: int, world_size: int) -> Path:
    """Return the file of one rank's shard of a checkpoint."""
    return path.with_name(f"{path.stem}.shard-{rank}-of-{world_size}")


def checksum_path(path: Path) -> Path:
    """Return the file with the SHA-256 of a checkpoint."""
    return path.with_name(path.name + ".sha256")


def list_checkpoints(folder: Path) -> list[Path]:
    """Return all checkpoints of a folder, newest step first; files with other names are ignored."""
    named = [path for path in folder.glob("step-*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(named, key=checkpoint_step, reverse=True)
