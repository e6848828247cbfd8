"""Proof of erasure: every byte below a database is searched for what a document was.

A document is known by its windows of 16 bytes: runs of 8 tokens as they are stored, its vectors as float16 and float32,
and its text. When the last segment that has a document is deleted, hashes of its windows are kept in `erased/`, with a
salt; they tell whether bytes are found again, and nothing else. Windows that documents still in the database have, too,
are theirs and are not searched for.

Shapes: w windows.
"""

import hashlib
import io
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retroflow.console import progress
from retroflow.database.snapshot import Snapshot
from retroflow.errors import UsageError
from retroflow.store.atomic import write_file
from retroflow.store.segment import Segment

ERASED_FOLDER = "erased"
KEPT_SECONDS = 90 * 24 * 3600.0
WINDOW = 16
RUN = 8
KINDS = ("tokens", "wide tokens", "vectors", "text")
_BLOCK = 8 << 20
_TABLE_BITS = 22
_Hashes = NDArray[np.uint64]
_MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Remains:
    """Where something of a document was found.

    Attributes:
        files: path below the database -> kinds of windows that are in it.
        num_files, num_bytes: that were searched.
        windows: how many were searched for.
        shared: how many were not, because other documents have them, too.
    """

    files: dict[str, list[str]]
    num_files: int
    num_bytes: int
    windows: int
    shared: int


def _hashes(data: bytes | memoryview, salt: int, phase: int) -> _Hashes:
    """Hash the windows at the offsets phase, phase + 8, phase + 16, ...; uint64 [w]."""
    count = max(0, (len(data) - phase) // 8)
    words = np.frombuffer(data, dtype="<u8", count=count, offset=phase if count else 0).astype(np.uint64)
    if len(words) < 2:
        return np.empty(0, dtype=np.uint64)
    mixed = (words[:-1] ^ np.uint64(salt)) * _MIX[0]
    mixed ^= mixed >> np.uint64(29)
    mixed += words[1:] * _MIX[1]
    mixed ^= mixed >> np.uint64(32)
    mixed *= _MIX[2]
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _double(hashes: _Hashes) -> _Hashes:
    """Hash windows of 32 bytes from the hashes of two windows of 16 that follow one another."""
    return (hashes[:-2] * _MIX[0]) ^ (hashes[2:] + _MIX[1])


def windows_of(segment: Segment, place: int, text: str, salt: int) -> dict[str, _Hashes]:
    """Hash the windows of a document.

    Args:
        segment: has it.
        place: in the segment.
        text: its text.
        salt: of the hashes.

    Returns:
        Of each kind, sorted and distinct.
    """
    rows = slice(*segment.starts[place : place + 2].tolist())
    tokens = np.asarray(segment.tokens[rows]).reshape(-1)[: int(segment.lengths[rows].sum(dtype=np.int64))]
    narrow = tokens.astype("<u2") if segment.tokens.dtype == np.uint16 else np.empty(0, "<u2")
    starts = range(max(0, len(tokens) - RUN + 1))
    found = {
        "tokens": [_hashes(narrow[start : start + RUN].tobytes(), salt, 0) for start in starts if len(narrow)],
        "wide tokens": [
            _double(_hashes(tokens[start : start + RUN].astype("<u4").tobytes(), salt, 0)) for start in starts
        ],
        "vectors": [],
        "text": [_hashes(text.encode(), salt, 0)[::2]],
    }
    if segment.embeddings is not None:
        vectors = np.ascontiguousarray(segment.embeddings[rows])
        found["vectors"] = [_hashes(each.tobytes(), salt, 0)[::2] for row in vectors for each in _stored_as(row)]
    return {kind: np.unique(np.concatenate([np.empty(0, np.uint64), *parts])) for kind, parts in found.items()}


def _stored_as(vector: NDArray[np.float16]) -> tuple[NDArray[np.floating], ...]:
    return vector, vector.astype(np.float32)


class _Search:
    """Looks for windows in bytes.

    Args:
        wanted: hashes of each kind.
        salt: of the hashes.
    """

    def __init__(self, wanted: dict[str, _Hashes], salt: int) -> None:
        self._salt = salt
        self.wanted = wanted
        self._narrow = np.unique(np.concatenate([wanted[kind] for kind in KINDS if kind != "wide tokens"]))
        self._tables = [_table(self._narrow), _table(wanted["wide tokens"])]

    def __call__(self, data: bytes | memoryview) -> _Hashes:
        """Return the hashes that are found, of all kinds."""
        found = [np.empty(0, dtype=np.uint64)]
        for phase in range(8):
            hashes = _hashes(data, self._salt, phase)
            found.append(hashes[self._tables[0][hashes >> np.uint64(64 - _TABLE_BITS)]])
            if len(self.wanted["wide tokens"]) and len(hashes) > 2:
                wide = _double(hashes)
                found.append(wide[self._tables[1][wide >> np.uint64(64 - _TABLE_BITS)]])
        everything = np.unique(np.concatenate(found))
        return everything[np.isin(everything, np.concatenate([self._narrow, self.wanted["wide tokens"]]))]

    def kinds(self, found: _Hashes) -> list[str]:
        """Return the kinds of some hashes that were found."""
        return [kind for kind in KINDS if np.isin(found, self.wanted[kind]).any()]


def _table(hashes: _Hashes) -> NDArray[np.bool_]:
    table = np.zeros(1 << _TABLE_BITS, dtype=bool)
    table[hashes >> np.uint64(64 - _TABLE_BITS)] = True
    return table


def record_erased(folder: Path, segments: Iterable[Segment], newest: Snapshot, number: int) -> None:
    """Keep hashes of documents whose last segment is about to be deleted.

    Args:
        folder: of the database; the caller is its writer.
        segments: that will be deleted.
        newest: the newest version, whose documents are not recorded.
        number: names the file.
    """
    salt = secrets.randbits(64)
    names, parts = list[bytes](), {kind: list[_Hashes]() for kind in KINDS}
    for segment in segments:
        for place, document in enumerate(segment.documents()):
            if newest.view.number(document.id) is not None:
                continue
            found = windows_of(segment, place, text_in(segment, place, newest), salt)
            names.append(_name_of(document.id, salt))
            for kind, hashes in found.items():
                parts[kind].append(hashes)
    if names:
        arrays: dict[str, NDArray[np.generic]] = {"salt": np.array([salt], dtype=np.uint64)}
        arrays["names"] = np.frombuffer(b"".join(names), dtype=np.uint8).reshape(len(names), -1)
        for kind, hashed in parts.items():
            arrays[f"{kind} lengths"] = np.array([len(each) for each in hashed], dtype=np.int64)
            arrays[kind] = np.concatenate(hashed)
        stream = io.BytesIO()
        np.savez(stream, **arrays)  # type: ignore[arg-type]
        content = stream.getvalue()
        (folder / ERASED_FOLDER).mkdir(exist_ok=True)
        write_file(folder / ERASED_FOLDER / f"{number:08d}-{hashlib.sha256(content).hexdigest()}.npz", content)


def forget_erased(folder: Path) -> None:
    """Delete records that are older than `KEPT_SECONDS`."""
    for path in (folder / ERASED_FOLDER).glob("*"):
        if path.suffix == ".tmp" or path.stat().st_mtime < time.time() - KEPT_SECONDS:
            path.unlink()


def text_in(segment: Segment, place: int, snapshot: Snapshot) -> str:
    """Return the text of a document of a segment."""
    rows = slice(*segment.starts[place : place + 2].tolist())
    length = int(segment.lengths[rows].sum(dtype=np.int64))
    return snapshot.tokenizer.decode(np.asarray(segment.tokens[rows]).reshape(-1)[:length])


def _name_of(id: str, salt: int) -> bytes:
    return hashlib.sha256(salt.to_bytes(8, "little") + id.encode()).digest()[:WINDOW]


def find_remains(folder: Path, id: str, snapshots: Iterable[Snapshot]) -> Iterator[Remains]:
    """Search everything below a database for a document that was removed.

    Args:
        folder: of the database.
        id: of the document.
        snapshots: all versions, the newest last.

    Yields:
        What was found of each text that the document had.

    Raises:
        UsageError: the database has the document, or no trace of it.
    """
    versions = list(snapshots)
    newest = versions[-1]
    if newest.view.number(id) is not None:
        raise UsageError(f'the database has the document "{id}"; `remove` removes it.')
    known = list(_recorded(folder, id))
    segments = {each.folder.name: each for version in versions for each in version.segments}
    salt = secrets.randbits(64)
    for segment in segments.values():
        places = [place for place, document in enumerate(segment.documents()) if document.id == id]
        known += [(salt, windows_of(segment, place, text_in(segment, place, newest), salt)) for place in places]
    if not known:
        raise UsageError(
            f'nothing is known of a document "{id}": the database never had it, or it was erased more than 90 days ago.'
        )
    for salt, wanted in known:
        yield _search(folder, newest, _Search(wanted, salt), salt)


def _recorded(folder: Path, id: str) -> Iterator[tuple[int, dict[str, _Hashes]]]:
    for path in sorted((folder / ERASED_FOLDER).glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            salt = int(arrays["salt"][0])
            own = np.flatnonzero((arrays["names"] == np.frombuffer(_name_of(id, salt), np.uint8)).all(axis=1))
            for row in own.tolist():
                wanted = {}
                for kind in KINDS:
                    end = int(arrays[f"{kind} lengths"][: row + 1].sum())
                    wanted[kind] = arrays[kind][end - int(arrays[f"{kind} lengths"][row]) : end]
                yield salt, wanted


def _search(folder: Path, newest: Snapshot, search: _Search, salt: int) -> Remains:
    total = len(np.unique(np.concatenate(list(search.wanted.values()))))
    shared = np.unique(np.concatenate([np.empty(0, np.uint64), *map(search, _live_bytes(newest))]))
    left = {kind: hashes[~np.isin(hashes, shared)] for kind, hashes in search.wanted.items()}
    rest = _Search(left, salt)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files: dict[str, list[str]] = {}
    num_bytes = sum(path.stat().st_size for path in paths)
    with progress("search for remains", num_bytes, "bytes") as advance:
        for path in paths:
            found = np.unique(np.concatenate([np.empty(0, np.uint64), *map(rest, _blocks(path, advance))]))
            name = path.relative_to(folder).as_posix()
            if len(found) and not name.startswith(f"{ERASED_FOLDER}/"):
                files[name] = rest.kinds(found)
    windows = total - len(shared)
    return Remains(files, len(paths), num_bytes, windows, len(shared))


def _live_bytes(snapshot: Snapshot) -> Iterator[bytes]:
    """Yield what documents of a version are made of, a document at a time."""
    view, dimension = snapshot.view, snapshot.identity.dimension
    for number in range(view.num_documents):
        chunks = view.chunks_of(number)
        tokens = view.tokens[chunks]
        yield tokens.astype(tokens.dtype.newbyteorder("<")).tobytes()
        yield tokens.astype("<u4").tobytes()
        record = view.document(number)
        yield " ".join([record.id, record.title, record.source, snapshot.text(number)]).encode()
        if dimension is not None:
            vectors = view.embeddings(dimension)[chunks]
            yield vectors.tobytes()
            yield vectors.astype(np.float32).tobytes()


def _blocks(path: Path, advance: Callable[[int], None]) -> Iterator[bytes]:
    """Yield the bytes of a file in blocks, each with the end of the one before."""
    end = b""
    with path.open("rb") as stream:
        while data := stream.read(_BLOCK):
            yield end + data
            end = data[-2 * WINDOW :]
            advance(len(data))
