"""Whether a file or a folder is in use, asked without disturbing whoever uses it."""

import fcntl
import os
from pathlib import Path

_PROCESSES = Path("/proc")


def is_held(lock_file: Path) -> bool:
    """Say whether a process holds a lock; one whose state cannot be told counts as held.

    Args:
        lock_file: what `filelock.FileLock` was given; one that is not there is not held.
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
        os.close(descriptor)  # which gives the lock back
    return False


def users_of(folder: Path) -> dict[Path, int]:
    """Find files below a folder that a process has open or mapped, each with a process that has.

    Linux alone tells; only processes of this machine that this user may look at are seen, and this one is left out.
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
    except OSError:  # it has ended meanwhile, or belongs to somebody else
        pass
    return names
