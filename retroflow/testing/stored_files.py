"""What a component saved: files in its own folder and nowhere else, no links, no pickles."""

import io
import pickletools
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import numpy as np

from retroflow.testing.effects import writes_outside

NPY = b"\x93NUMPY"


def check_saved_alone(save: Callable[[Path], None], folder: Path) -> None:
    """Assert that save(folder) writes into folder and nowhere else; the parents of folder are made here, two levels."""
    origin = folder.parent.parent
    folder.parent.mkdir()
    with own_surroundings(origin), writes_outside(folder) as elsewhere:
        surroundings = listing(origin, folder)
        save(folder)
        beside = sorted(listing(origin, folder) - surroundings)
    assert not elsewhere, f"save() writes outside its folder: {elsewhere[:3]}"
    assert not beside, f"save() leaves files outside its folder: {beside[:3]}"
    links = [path.name for path in folder.rglob("*") if path.is_symlink()]
    assert not links, f"save() makes links ({links[:3]}); a moved folder could not be opened, so write files"


def pickles_in(folder: Path) -> list[str]:
    """Name the files below folder that are pickles, or hold them."""
    return [name for path in files_in(folder) for name in _pickles_in(path.name, path.read_bytes())]


@contextmanager
def own_surroundings(folder: Path) -> Iterator[None]:
    """Make places that are easily written to, the current folder and that of temporary files, parts of folder."""
    before = tempfile.tempdir
    for name in ("current", "temporary"):
        (folder / name).mkdir()
    tempfile.tempdir = str(folder / "temporary")
    try:
        with chdir(folder / "current"):
            yield
    finally:
        tempfile.tempdir = before


def listing(folder: Path, without: Path | None = None) -> set[str]:
    """Return what is below folder, without what is below another."""
    paths = (path for path in folder.rglob("*") if without is None or not path.is_relative_to(without))
    return {path.relative_to(folder).as_posix() for path in paths}


def files_in(folder: Path) -> list[Path]:
    """Return every file below folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _pickles_in(name: str, content: bytes) -> list[str]:
    """Name what is a pickle: a file, a member of a zip (npz, torch), an array of objects."""
    if zipfile.is_zipfile(io.BytesIO(content)) and content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(f"{name}:{member}", archive.read(member)) for member in archive.namelist()]
        return [found for member, inner in members for found in _pickles_in(member, inner)]
    if content.startswith(NPY):
        return [f"{name} (an array of objects)"] if _holds_objects(content) else []
    return [name] if _is_pickle(content) else []


def _holds_objects(content: bytes) -> bool:
    try:
        np.load(io.BytesIO(content), allow_pickle=False)
    except ValueError as error:
        return "pickle" in str(error).lower()
    return False


def _is_pickle(content: bytes) -> bool:
    """Say whether all of content is one pickle or several; short text can look like one of protocol 0."""
    if content[:1] != b"\x80" and content[:1] not in b"(]}cl":
        return False
    stream = io.BytesIO(content)
    try:
        while stream.tell() < len(content):
            for _ in pickletools.genops(stream):
                pass
    except Exception:  # whatever genops makes of bytes that are no pickle
        return False
    return len(content) > 2
