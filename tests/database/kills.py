"""Kills a writer at its n-th write: from then on nothing that it does reaches the disk, as after SIGKILL."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

WRITES = ("fsync", "replace", "unlink", "mkdir", "rmdir", "pwrite")


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def killed_at(point: int | None) -> Iterator[list[str]]:
    """Raise at write number `point` and at every later one; None only counts. Yields the writes so far."""
    writes: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in WRITES:
            patch.setattr(os, name, _counted(name, getattr(os, name), writes, point))
        yield writes


def _counted(name: str, real: Callable, writes: list[str], point: int | None) -> Callable:
    def write(*words, **options):
        writes.append(name)
        if point is not None and len(writes) >= point:
            raise Killed
        return None if name == "fsync" else real(*words, **options)

    return write


def kill(action: Callable[[], object], point: int) -> bool:
    """Run an action and kill it; returns whether it was killed before its end."""
    try:
        with killed_at(point):
            action()
    except Killed:
        gc.collect()  # a process that ends lets go of its locks
        return True
    return False


def count(action: Callable[[], object]) -> int:
    """How many writes an action makes."""
    with killed_at(None) as writes:
        action()
    return len(writes)
