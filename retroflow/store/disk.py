"""Bytes on a disk, and the folder whose disk they are on, for people."""

from pathlib import Path

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def disk_size(num_bytes: float) -> str:
    """A number of bytes in decimal units, as disks are sold and as `df -H` has it; memory is in GiB (`memory.py`)."""
    for unit, size in _UNITS:
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes:,.0f} B"


def nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
