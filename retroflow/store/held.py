"""Whether a file or a folder is in use, without disturbing its user."""

import fcntl
import os
from pathlib import Path

_PROCESSES = Path("/proc")


def is_held(lock_file: Path) -> bool:
    """Return whether a process holds a lock; a lock of unknown state counts as held.

    Args:
        lock_file: the file of a `filelock.FileLock`; one that does not exist is not held.
    """
    try:
        descriptor = os.open(lock_file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)  # which releases the lock
    return False


def users_of(folder: Path) -> dict[Path, int]:
    """Find files below a folder that a process has open or mapped, each with such a process.

    Works on Linux only, and only for processes of this machine that this user may inspect, except this one.
    """
    inside = os.path.realpath(folder) + os.sep
    found: dict[Path, int] = {}
    for process in _PROCESSES.glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        for name in _files_of(process):
            if name.startswith(inside):
                found[Path(name)] = int(process.name)
    return found


def _files_of(process: Path) -> set[str]:
    names: set[str] = set()
    try:
        for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6:
                names.add(fields[5])
        names |= {os.readlink(descriptor) for descriptor in (process / "fd").iterdir()}
    except OSError:  # it has ended, or belongs to another user
        pass
    return names
