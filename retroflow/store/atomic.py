"""Files that appear whole or not at all, and one-line errors for failures of the disk."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from retroflow.errors import RetroflowError, UsageError


def canonical_json(value: object) -> bytes:
    """Render JSON values in the form that is hashed: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; see `write_stream`."""
    write_stream(path, lambda stream: stream.write(content))


def write_stream(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file by a sibling name, fsync and rename: a reader sees the old content or all of the new.

    The sibling has `path`'s name with `.<12 hexadecimal digits>.tmp` added, drawn anew so that two writers never share
    one: on two machines they may have the same process id. It is removed on failure; a kill leaves it. The mode follows
    the umask.
    """
    sibling = path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with sibling.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(sibling, path)
    except BaseException:
        sibling.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Fsync a folder, so that renames and new names survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Fsync every file and folder below a folder, for files that other libraries wrote."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(Path(parent))


def check_unused(folder: Path) -> None:
    """Refuse to write into a folder that is not empty.

    Raises:
        UsageError: the folder is not empty, is a file, or is the current folder of this process.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f'"{folder}" is not empty; give a new or an empty folder.')
    if folder.exists() and not folder.is_dir():
        raise UsageError(f'"{folder}" is a file; give a new or an empty folder.')
    if os.path.realpath(folder) == os.getcwd():
        raise UsageError(f'"{folder}" is the current folder, which cannot be replaced; give another folder.')


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; it becomes `folder` at the end of the body, and is removed if that fails.

    Raises:
        UsageError: as `check_unused`.
        RetroflowError: it cannot be written, or the disk is full.
    """
    check_unused(folder)
    folder = Path(os.path.realpath(folder))  # a link remains a link, to the filled folder
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():  # safetensors creates files that only their owner can read
                path.chmod(partial.stat().st_mode & 0o666)
        sync_tree(partial)
        os.replace(partial, folder)
    except OSError as error:
        reason = error.strerror or error
        raise RetroflowError(
            f'"{folder}": cannot be written ({reason}), and nothing is left of it. Free space, or give another folder.'
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(folder.parent)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the disk into a RetroflowError that names the folder and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            message = (
                f'"{folder}": no space is left there ({error.strerror}). Free some, or give another disk with '
                "data.artifacts_folder=FOLDER; what is complete is kept, and the same command continues from there."
            )
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            place = error.filename or folder
            message = (
                f'"{place}": cannot be written or read ({error.strerror}). Change its permissions, or give another '
                "folder with data.artifacts_folder=FOLDER."
            )
        elif error.errno in (errno.EIO, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EMFILE):
            place = error.filename or folder
            message = f'"{place}": {error.strerror}. Check the disk, or give another with data.artifacts_folder=FOLDER.'
        elif error.errno is None:  # raised by a library's writer
            message = f'"{folder}": {error}. Check that the disk has room, or set data.artifacts_folder=FOLDER.'
        else:
            raise
        raise RetroflowError(message) from error
