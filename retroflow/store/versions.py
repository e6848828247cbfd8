"""The versions of a database on disk, and the one file that is swapped to commit a new one.

DB/
  current.json          the newest version, its hash, and the tags; swapped by a rename
  versions/00000007.json    what a version consists of
  parts/                identity-, segment- and index- artifacts (`retroflow.store.artifact`)
  dead/                 removed documents of a segment, as numbers
"""

import errno
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.errors import DamagedDataError
from retroflow.protocols import Int64Array
from retroflow.store.atomic import canonical_json, write_file
from retroflow.store.manifest import PARTS_FOLDER
from retroflow.store.sealed_json import read_sealed, render_sealed
from retroflow.store.segment import StoredDocument

FORMAT_VERSION = 1
CURRENT_FILE = "current.json"
VERSIONS_FOLDER = "versions"
STATES_FOLDER = "states"
REMEDY = "Restore the database from a copy."


@dataclass(frozen=True)
class Part:
    """An artifact in the folder `parts`.

    Attributes:
        name: of its folder.
        content: its `Manifest.content`.
    """

    name: str
    content: str


@dataclass(frozen=True)
class SegmentState:
    """A segment as a version has it.

    Attributes:
        part: its artifact.
        documents, chunks: in the segment, removed ones included.
        dead_documents, dead_chunks: removed ones.
        dead: name of the file with their numbers in the segment; empty if there are none.
        dead_sha256: of that file.
        records: name of the file with records of documents that have another title or source now; likewise.
        records_sha256: of that file.
    """

    part: Part
    documents: int
    chunks: int
    dead_documents: int = 0
    dead_chunks: int = 0
    dead: str = ""
    dead_sha256: str = ""
    records: str = ""
    records_sha256: str = ""


@dataclass(frozen=True)
class Version:
    """What a version of a database consists of.

    Attributes:
        number: from 1.
        created: seconds since 1970.
        verb: the command that made it.
        changed: documents that it added, replaced and removed, by these words.
        fingerprint: of the ids, titles and texts of its documents, whatever their order and history.
        identity: tokenizer, embedder and retriever.
        segments: in the order in which they were made.
        index: over all chunks, for a retriever that cannot search segments by themselves.
    """

    number: int
    created: float
    verb: str
    changed: Mapping[str, int]
    fingerprint: str
    identity: Part
    segments: tuple[SegmentState, ...] = ()
    index: Part | None = None

    @property
    def documents(self) -> int:
        """Documents that are in it."""
        return sum(each.documents - each.dead_documents for each in self.segments)

    @property
    def chunks(self) -> int:
        """Chunks that are in it."""
        return sum(each.chunks - each.dead_chunks for each in self.segments)

    @property
    def dead_share(self) -> float:
        """Share of the stored chunks whose documents are removed."""
        stored = sum(each.chunks for each in self.segments)
        return 1.0 - self.chunks / stored if stored else 0.0

    @property
    def file_name(self) -> str:
        """Name of its file in `versions`."""
        return version_file(self.number)

    @property
    def states(self) -> set[str]:
        """Names of the files in `states` that it has."""
        return {name for each in self.segments for name in (each.dead, each.records) if name}

    @property
    def parts(self) -> set[str]:
        """Names of all its parts."""
        whole = () if self.index is None else (self.index.name,)
        return {self.identity.name, *whole, *(each.part.name for each in self.segments)}

    def render(self) -> bytes:
        """Return the bytes of its file."""
        return render_sealed({"format_version": FORMAT_VERSION, **asdict(self)}, what="a version").encode()


@dataclass(frozen=True)
class Current:
    """The content of current.json.

    Attributes:
        version: number of the newest version.
        digest: SHA-256 of its file.
        tags: name -> number of a version.
    """

    version: int
    digest: str
    tags: Mapping[str, int]

    def write(self, database: Path) -> None:
        """Swap the file: this commits a version."""
        values = {"format_version": FORMAT_VERSION, **asdict(self)}
        write_file(database / CURRENT_FILE, render_sealed(values, what="current.json").encode())


def version_file(number: int) -> str:
    """Return the name of a version's file."""
    return f"{number:08d}.json"


def read_current(database: Path) -> Current:
    """Read current.json.

    Raises:
        FileNotFoundError: there is none, so this is no database, or one whose building did not end.
        DamagedDataError: it was changed.
    """
    path = database / CURRENT_FILE
    values = _read(path, REMEDY)
    try:
        tags = {str(name): int(number) for name, number in values["tags"].items()}
        return Current(int(values["version"]), str(values["digest"]), tags)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _wrong(path, error) from error


def read_version(database: Path, number: int, digest: str | None = None) -> Version:
    """Read the file of a version.

    Args:
        database: its folder.
        number: of the version.
        digest: SHA-256 of the file, if it is known.

    Raises:
        FileNotFoundError: there is no such version.
        DamagedDataError: it was changed, or belongs to another version.
    """
    path = database / VERSIONS_FOLDER / version_file(number)
    values = _read(path, REMEDY if digest else "Restore it from a copy, or delete it to give up this older version.")
    if digest is not None and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise DamagedDataError(f'"{path}": it is not the version that {CURRENT_FILE} names. {REMEDY}')
    if values.get("number") != number:
        raise DamagedDataError(f'"{path}": it describes version {values.get("number")}, not {number}. {REMEDY}')
    try:
        segments = tuple(SegmentState(**{**each, "part": Part(**each["part"])}) for each in values["segments"])
        index = None if values["index"] is None else Part(**values["index"])
        kept = ("number", "created", "verb", "changed", "fingerprint")
        fields: dict[str, Any] = {key: values[key] for key in kept}
        return Version(**fields, identity=Part(**values["identity"]), segments=segments, index=index)
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(path, error) from error


def version_numbers(database: Path) -> list[int]:
    """Return the numbers of all versions that have a file, ascending; those after the newest are leftovers."""
    return sorted(int(path.stem) for path in (database / VERSIONS_FOLDER).glob("[0-9]*.json") if path.stem.isdigit())


def _read(path: Path, remedy: str) -> dict[str, Any]:
    values = read_sealed(path, remedy=remedy)
    if values.get("format_version") != FORMAT_VERSION:
        raise DamagedDataError(
            f'"{path}": its format version is {values.get("format_version")!r}; this program reads {FORMAT_VERSION}. '
            "Use the retroflow that wrote it, or build the database again."
        )
    return values


def _wrong(path: Path, error: Exception) -> DamagedDataError:
    return DamagedDataError(f'"{path}": not what retroflow writes ({type(error).__name__}: {error}). {REMEDY}')


def write_dead(database: Path, name: str, documents: Int64Array) -> str:
    """Write the numbers of removed documents of a segment, ascending; returns the file's SHA-256."""
    stream = io.BytesIO()
    np.save(stream, documents)
    return _write_state(database, name, stream.getvalue())


def read_dead(database: Path, state: SegmentState) -> Int64Array:
    """Read the numbers of a segment's removed documents, int64, ascending.

    Raises:
        DamagedDataError: the file is missing or was changed.
    """
    if not state.dead:
        return np.empty(0, dtype=np.int64)
    content = _read_state(database, state.dead, state.dead_sha256)
    dead: Int64Array = np.load(io.BytesIO(content), allow_pickle=False)
    return dead


def write_records(database: Path, name: str, records: Mapping[int, StoredDocument]) -> str:
    """Write records of documents of a segment by their places in it; returns the file's SHA-256."""
    return _write_state(database, name, canonical_json({str(place): astuple(one) for place, one in records.items()}))


def read_records(database: Path, state: SegmentState) -> dict[int, StoredDocument]:
    """Read the records of a segment's documents that have another title or source than the segment has.

    Raises:
        DamagedDataError: the file is missing or was changed.
    """
    if not state.records:
        return {}
    content = _read_state(database, state.records, state.records_sha256)
    return {int(place): StoredDocument(*record) for place, record in json.loads(content).items()}


def _write_state(database: Path, name: str, content: bytes) -> str:
    write_file(database / STATES_FOLDER / name, content)
    return hashlib.sha256(content).hexdigest()


def _read_state(database: Path, name: str, sha256: str) -> bytes:
    path = database / STATES_FOLDER / name
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DamagedDataError(f'"{path}" is damaged: the file is missing. {REMEDY}') from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedDataError(f'"{path}" is damaged: its bytes do not match their SHA-256. {REMEDY}')
    return content


class Hold:
    """A version's files are not deleted while somebody has it: a shared lock on its file, gone with the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        """Let go."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


def hold(database: Path, number: int) -> Hold | None:
    """Hold a version; None if it has just been deleted."""
    return _locked(database, number, fcntl.LOCK_SH)


def hold_alone(database: Path, number: int) -> Hold | None:
    """Hold a version to delete it; None if a reader holds it, here or in another process, or it is deleted."""
    return _locked(database, number, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _locked(database: Path, number: int, kind: int) -> Hold | None:
    path = database / VERSIONS_FOLDER / version_file(number)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    held = Hold(descriptor)
    try:
        fcntl.flock(descriptor, kind)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            held.close()
            return None
        # A file system without locks: versions of the last days are not deleted anyway.
    try:
        is_there = os.stat(path).st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:  # deleted in the meantime
        is_there = False
    if not is_there:
        held.close()
        return None
    return held


def part_folder(database: Path, part: Part) -> Path:
    """Return the folder of a part."""
    return database / PARTS_FOLDER / part.name
