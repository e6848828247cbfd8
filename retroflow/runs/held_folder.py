"""A run folder that must not be moved while a run writes to it."""

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from retroflow.errors import RetroflowError


class HeldFolder:
    """Notices that a folder was renamed, moved, deleted or replaced.

    It is kept open, so that a new folder cannot get its inode.

    Args:
        path: the folder.

    Raises:
        RetroflowError: it does not exist any more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise RetroflowError(self._complaint("")) from error

    def check(self) -> None:
        """Raise RetroflowError if the folder has changed its path; called before every write."""
        held = os.fstat(self._descriptor)
        with suppress(FileNotFoundError, NotADirectoryError):
            there = os.stat(self._path)
            if (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino):
                return
        raise RetroflowError(self._complaint(self._new_place() if held.st_nlink else ""))

    def close(self) -> None:
        """Release it."""
        os.close(self._descriptor)

    def __enter__(self) -> "HeldFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _new_place(self) -> str:
        """Return its present path, empty if the system does not tell."""
        with suppress(OSError):
            return os.readlink(f"/proc/self/fd/{self._descriptor}")
        return ""

    def _complaint(self, place: str) -> str:
        remedy = f"it is {place} now; continue with resume='{place}'" if place else "start a new run"
        return f"{self._path}: the run folder was renamed or deleted while the run used it, so the run stops; {remedy}"
