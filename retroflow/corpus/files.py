"""Find the files of a corpus in a fixed order, and identify them by their content."""

import hashlib
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from retroflow.corpus.own_folders import is_own_folder
from retroflow.errors import CorpusError

WILDCARDS = frozenset("*?[")


class FoundFile(NamedTuple):
    """A file of the corpus: its path, and its name relative to the corpus path, with forward slashes."""

    path: Path
    name: str


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Match the parts of a relative path with those of a glob; `**` means any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return matches(parts, pattern[1:]) or (bool(parts) and matches(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def may_match_below(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a path that begins with these folders could match; others need not be walked."""
    for part, wanted in zip(parts, pattern, strict=False):
        if wanted == "**":
            return True
        if not fnmatchcase(part, wanted):
            return False
    return len(parts) < len(pattern)


def printable(name: str) -> str:
    """Escape a file name that is not UTF-8, so that it can be an id."""
    return name.encode("utf-8", "backslashreplace").decode()


def walk(
    folder: Path, patterns: Sequence[str], *, without: Container[str] = (), own_folders: set[str] | None = None
) -> Iterator[FoundFile]:
    """Yield the files below a folder that match one of the globs, sorted by name within each folder.

    Skipped are hidden files and folders, names in `without` directly below the folder, and retroflow's own runs and
    artifacts, whose relative names are added to `own_folders`. Only one folder's names are in memory at a time.

    Raises:
        CorpusError: a pipe, socket or device matches: it may never end, and cannot be read twice.
    """
    split_patterns = [pattern.split("/") for pattern in patterns]

    def visit(current: str, parts: tuple[str, ...], above: tuple[str, ...]) -> Iterator[FoundFile]:
        real = os.path.realpath(current)
        if real in above:  # a symbolic link to a folder above
            return
        with os.scandir(current) as entries:
            names = sorted((entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith("."))
        if parts and is_own_folder(current, {name for name, _ in names}):
            if own_folders is not None:
                own_folders.add(printable("/".join(parts)))
            return
        for name, is_folder in names:
            below = (*parts, name)
            if not parts and name in without:
                continue
            if is_folder and any(may_match_below(below, pattern) for pattern in split_patterns):
                yield from visit(os.path.join(current, name), below, (*above, real))
            elif not is_folder and any(matches(below, pattern) for pattern in split_patterns):
                path = Path(current, name)
                refuse_special(path)
                yield FoundFile(path, printable("/".join(below)))

    yield from visit(str(folder), (), ())


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a broken link: opening it raises the error
        return False


def find_files(
    path: str, *, include: Sequence[str], key: str, own_folders: set[str] | None = None
) -> Iterator[FoundFile]:
    """Yield the files that a recipe's path names: the file, the matching files of a folder, or those of a glob.

    Args:
        path: file, folder or glob; relative to the current folder; `~` is the home folder.
        include: globs for the files of a folder, relative to it.
        key: recipe key to name in errors.
        own_folders: relative names of skipped runs and artifacts of retroflow are added to it.

    Raises:
        CorpusError: the path does not exist, nothing matches, or a folder cannot be read.
    """
    written = os.path.expanduser(path)
    root, patterns = Path(written), include
    if os.path.isfile(written):
        yield FoundFile(root, printable(root.name))
        return
    if os.path.exists(written):
        refuse_special(root)
    else:
        parts = root.parts
        first = next((i for i, part in enumerate(parts) if WILDCARDS & set(part)), len(parts))
        root, patterns = Path(*parts[:first]), ["/".join(parts[first:])]
        if first == len(parts) or not os.path.isdir(root):
            missing = Path(written) if first == len(parts) else root
            raise CorpusError(
                f'{key}: "{path}" does not exist (looked for {os.path.abspath(missing)}). '
                "Give a file, a folder or a glob such as docs/**/*.txt; relative paths start at the current folder."
            )
    found, own_folders = False, set() if own_folders is None else own_folders
    try:
        for file in walk(root, patterns, own_folders=own_folders):
            found = True
            yield file
    except OSError as error:
        raise CorpusError(
            f'{key}: "{path}" cannot be listed ({error}). Make it readable, or name the files.'
        ) from error
    if not found:
        beside = ", without retroflow's own runs and artifacts" if own_folders else ""
        raise CorpusError(
            f'{key}: "{path}" has no file that matches {" or ".join(patterns)} (looked in {os.path.abspath(root)}'
            f"{beside}). Name the files by a glob, or give another folder."
        )


def describe_files(files: Iterable[FoundFile]) -> dict[str, object]:
    """Identify files by name and content: number, bytes, and one SHA-256 over all of them.

    Raises:
        CorpusError: a file cannot be read.
    """
    together, num_files, num_bytes = hashlib.sha256(), 0, 0
    for file in files:
        try:
            with file.path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256")
                size = stream.tell()
        except OSError as error:
            raise unreadable(file.path, error) from error
        together.update(f"{file.name}\0{size}\0{content.hexdigest()}\n".encode())
        num_files += 1
        num_bytes += size
    return {"files": num_files, "bytes": num_bytes, "sha256": together.hexdigest()}


def refuse_special(path: Path) -> None:
    """Refuse a path that is neither a file nor a folder.

    Raises:
        CorpusError: a named pipe, a socket or a device.
    """
    kinds = {
        "named pipe": path.is_fifo,
        "socket": path.is_socket,
        "device": path.is_char_device,
        "disk": path.is_block_device,
    }
    for kind, found in ({} if path.is_file() else kinds).items():
        if found():
            raise CorpusError(
                f"{path}: is a {kind}, not a file; a corpus is read more than once and must not change. "
                "Write its content to a file, or leave it out."
            )


def unreadable(path: Path, error: OSError) -> CorpusError:
    """Return the error for an existing file that cannot be read."""
    return CorpusError(f"{path}: cannot be read ({error.strerror or error}). Make it readable, or leave it out.")
