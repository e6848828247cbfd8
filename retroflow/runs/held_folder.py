"""A run folder that must stay where it is while a run writes to it."""

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from retroflow.errors import RetroflowError


class HeldFolder:
    """Notices that a folder was renamed, moved or deleted, or another one has taken its name.

    It is kept open, so that its number on the file system cannot be given to a new folder.

    Args:
        path: the folder.

    Raises:
        RetroflowError: it is not there any more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise RetroflowError(self._complaint("")) from error

    def check(self) -> None:
        """Raise RetroflowError unless the folder is still there; called before anything is written to it."""
        held = os.fstat(self._descriptor)
        with suppress(FileNotFoundError, NotADirectoryError):
            there = os.stat(self._path)
            if (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino):
                return
        raise RetroflowError(self._complaint(self._new_place() if held.st_nlink else ""))

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)

    def __enter__(self) -> "HeldFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _new_place(self) -> str:
        """Where it is now, empty on systems that do not tell."""
        with suppress(OSError):
            return os.readlink(f"/proc/self/fd/{self._descriptor}")
        return ""

    def _complaint(self, place: str) -> str:
        remedy = f"it is {place} now; continue with --resume {place}" if place else "start a new run"
        return f"{self._path}: the run folder was renamed or deleted while the run used it, so the run stops; {remedy}"
