"""One version of a database, opened: it stays what it is, whatever a writer does."""

from functools import cached_property
from pathlib import Path

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.database.identity import Identity
from retroflow.database.searching import Search, VersionSearch, WholeSearch
from retroflow.database.view import View
from retroflow.errors import DamagedDataError, UsageError
from retroflow.protocols import Int64Array
from retroflow.store.artifact import INDEX_FOLDER, open_artifact
from retroflow.store.manifest import PARTS_FOLDER, damaged
from retroflow.store.segment import Segment
from retroflow.store.versions import (
    CURRENT_FILE,
    VERSIONS_FOLDER,
    Current,
    Hold,
    Version,
    hold,
    part_folder,
    read_current,
    read_dead,
    read_records,
    read_version,
    version_numbers,
)


def named_version(name: str | Path) -> tuple[Path, str | None]:
    """Split `DB@7` or `DB@tag` into the folder and the version; None for the newest."""
    path = Path(name)
    head, at, tail = path.name.rpartition("@")
    if path.exists() or not at or not head:
        return path, None
    return path.with_name(head), tail


def is_database(folder: Path) -> bool:
    """Say whether a folder, or `folder@version`, is a database."""
    return (named_version(folder)[0] / CURRENT_FILE).is_file()


def current_of(folder: Path) -> Current:
    """Read current.json.

    Raises:
        UsageError: the folder is no database.
        DamagedDataError: it was changed.
    """
    try:
        return read_current(folder)
    except (FileNotFoundError, NotADirectoryError):
        pass
    if not folder.is_dir():
        raise UsageError(f'"{folder}": there is no such folder; `retroflow db build` makes a database.')
    if (folder / PARTS_FOLDER).is_dir() and version_numbers(folder) in ([], [1]):
        raise UsageError(f'"{folder}": the building of this database did not end; run the same `retroflow db build`.')
    if (folder / VERSIONS_FOLDER).is_dir():
        raise DamagedDataError(f'"{folder / CURRENT_FILE}" is missing. Restore the database from a copy.')
    raise UsageError(f'"{folder}": not a database (it has no {CURRENT_FILE}); `retroflow db build` makes one.')


class Snapshot:
    """A version of a database.

    Args:
        folder: of the database.
        version: the version.
        held: keeps its files from being deleted.

    Attributes:
        identity: tokenizer, embedder and retriever.
        segments: checked and mapped.
        dead: int64, removed documents of each segment.
    """

    def __init__(self, folder: Path, version: Version, held: Hold | None = None) -> None:
        self.folder, self.version, self._held = folder, version, held
        self.identity = Identity.open(folder, version.identity)
        self.segments = [Segment.open(part_folder(folder, each.part), each.part.content) for each in version.segments]
        self.dead: list[Int64Array] = [read_dead(folder, each) for each in version.segments]
        for segment, state in zip(self.segments, version.segments, strict=True):
            segment.replaced = read_records(folder, state)
        self._check_counts()
        self._index = None
        if version.index is not None:
            self._index = part_folder(folder, version.index)
            if not self._index.is_dir() or open_artifact(self._index).content != version.index.content:
                raise damaged(self._index, "it is missing, or the index of another version", self._index)

    @classmethod
    def open(cls, folder: Path, at: str | int | None = None) -> "Snapshot":
        """Open a version.

        Args:
            folder: of the database.
            at: a number or a tag; None for the newest.

        Raises:
            UsageError: no database, or no such version.
            DamagedDataError: a file differs from what was written.
        """
        while True:
            current = current_of(folder)
            number, digest = _number(folder, current, at)
            held = hold(folder, number)
            if held is not None:
                return cls(folder, read_version(folder, number, digest), held)
            if at is not None or current_of(folder) == current:
                raise _no_version(folder, str(number))

    def close(self) -> None:
        """Let a writer delete the version's files."""
        if self._held is not None:
            self._held.close()

    @cached_property
    def view(self) -> View:
        """Its documents and chunks."""
        identity = self.identity
        return View(
            self.segments,
            self.dead,
            chunk_length=identity.chunk_length,
            vocabulary_size=identity.vocabulary_size,
            end_of_text=identity.end_of_text,
        )

    @cached_property
    def search(self) -> Search:
        """Its index, opened at the first use.

        Raises:
            RetroflowError: the retriever cannot be created here.
        """
        identity = self.identity
        if self._index is None:
            return VersionSearch(self.segments, self.view, identity.new_retriever)
        retriever = identity.new_retriever()
        retriever.load(self._index / INDEX_FOLDER)
        return WholeSearch(retriever, self.view)

    @property
    def tokenizer(self) -> Tokenizer:
        """The database's tokenizer."""
        return self.identity.tokenizer

    def text(self, number: int) -> str:
        """Return the text of a document by its number, as its tokens spell it."""
        chunks = self.view.chunks_of(number)
        tokens, lengths = self.view.tokens[chunks], self.view.lengths[chunks]
        return self.tokenizer.decode(
            [token for row, length in zip(tokens, lengths, strict=True) for token in row[:length].tolist()]
        )

    def _check_counts(self) -> None:
        for state, segment, dead in zip(self.version.segments, self.segments, self.dead, strict=True):
            counts = (segment.num_documents, len(segment), len(dead))
            if counts != (state.documents, state.chunks, state.dead_documents):
                what = f"documents, chunks and removed documents are {counts}, and not those of its version"
                raise damaged(segment.folder, what, segment.folder)


def _number(folder: Path, current: Current, at: str | int | None) -> tuple[int, str | None]:
    if at is None:
        return current.version, current.digest
    number = current.tags.get(str(at), int(at) if str(at).isdigit() else -1)
    if number not in version_numbers(folder) or number > current.version:
        raise _no_version(folder, str(at), current)
    return number, current.digest if number == current.version else None


def _no_version(folder: Path, at: str, current: Current | None = None) -> UsageError:
    current = current or current_of(folder)
    numbers = [str(number) for number in version_numbers(folder) if number <= current.version]
    shown = ", ".join([*numbers[-8:], *current.tags])
    return UsageError(f'"{folder}": there is no version or tag "{at}"; there are {shown}.')
