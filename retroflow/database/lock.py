"""One writer at a time: a lock that says who holds it, and one-line errors for a disk that cannot be written."""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from retroflow.errors import RetroflowError
from retroflow.store.atomic import write_file

LOCK_FILE = ".lock"
OWNER_FILE = ".lock.owner"


@contextmanager
def writing(folder: Path, verb: str) -> Iterator[None]:
    """Hold the writer's lock of a database.

    Args:
        folder: of the database; exists.
        verb: what is done, for others who want to write.

    Raises:
        RetroflowError: another process or thread writes, the folder cannot be written, or the disk is full.
    """
    owner_file = folder / OWNER_FILE
    with disk_errors(folder):
        lock = filelock.FileLock(folder / LOCK_FILE, mode=0o666, is_singleton=False)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RetroflowError(
                f'"{folder}" is being changed by {_owner(owner_file)}. Wait until it has ended; readers need not wait.'
            ) from None
        try:
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "verb": verb, "since": time.time()}
            write_file(owner_file, json.dumps(owner).encode())
            yield
        finally:
            try:
                owner_file.unlink(missing_ok=True)
            finally:
                lock.release()


def _owner(file: Path) -> str:
    for _ in range(10):  # who has just taken the lock is about to write its name
        try:
            owner = json.loads(file.read_bytes())
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner["since"]))
            return f"process {owner['pid']} on {owner['host']} ({owner['verb']}, since {since})"
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(0.05)
    return "another process"


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the disk into one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            message = f'"{folder}": no space is left there ({reason}). Free some, and run the same command again.'
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            place = error.filename or folder
            message = f'"{place}": cannot be written ({reason}). Change its permissions, or copy the database.'
        else:
            message = f'"{error.filename or folder}": {reason}. Check the disk, and run the same command again.'
        raise RetroflowError(f"{message} The database is as it was before.") from error
