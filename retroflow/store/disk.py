"""Sizes on a disk for people, and whether a folder can be written."""

import tempfile
from pathlib import Path

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def disk_size(num_bytes: float) -> str:
    """Format a number of bytes in decimal units, as `df -H` does; memory is in GiB (`memory.py`)."""
    for unit, size in _UNITS:
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes:,.0f} B"


def nearest_existing(path: Path) -> Path:
    """Return the path itself, or the nearest existing folder above it."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def why_not_writable(folder: Path) -> str:
    """Return why no file can be made in an existing folder; empty if one can.

    A file is made and removed at once. The folder's permissions say less: root may write into /proc by them.
    """
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
