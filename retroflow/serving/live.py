"""The database of a server while it is changed: the next token reads the change.

Only a database of `retroflow db` can be changed. The newest version is followed, whoever made it.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from retroflow.database.database import Change, Database
from retroflow.database.snapshot import current_of
from retroflow.generation import RetrievalDatabase, Source
from retroflow.generation.decoding import Decoding
from retroflow.generation.language_model import LanguageModel
from retroflow.serving.bodies import BadRequest


@dataclass(frozen=True)
class _Reader:
    database: RetrievalDatabase | None
    version: int | None


class LiveDatabase:
    """What is searched, and how it is changed.

    Args:
        opened: the model with its database.
        decoding: which reads the database; gets each newer version.
    """

    def __init__(self, opened: LanguageModel, decoding: Decoding) -> None:
        self._opened, self._decoding = opened, decoding
        self._lock = threading.Lock()
        reader = opened.database
        self._living: Database | None = None if reader is None else reader.living()
        self._reader = _Reader(reader, None if self._living is None else self._living.version.number)

    def description(self) -> dict[str, Any] | None:
        """Say which database is read: name, fingerprint, version and chunks; None without one."""
        reader = self._reader
        if reader.database is None:
            return None
        return {
            "name": reader.database.name,
            "fingerprint": reader.database.fingerprint,
            "version": reader.version,
            "chunks": len(reader.database),
        }

    def search(self, text: str, num_neighbours: int) -> list[Source]:
        """Find the chunks that are nearest to a text, best first."""
        reader = self._reader.database
        if reader is None:
            raise BadRequest("this server has no database to search.")
        tokens = self._opened.tokenizer.encode(text).ids.tolist()
        return list(reader.retrieve([tokens], num_neighbours).sources[0])

    def add(self, documents: Sequence[dict[str, str]]) -> Change:
        """Add documents, with "id", "text" and perhaps "title" and "source"."""
        return self._change(lambda database: database.add(list(documents)))

    def remove(self, ids: Sequence[str]) -> Change:
        """Remove documents."""
        return self._change(lambda database: database.remove(list(ids)))

    def follow(self) -> None:
        """Read the newest version, if another process has made one; wait for no change of this process."""
        if self._living is None or not self._living.is_newest:
            return
        is_behind = current_of(self._living.folder).version != self._living.version.number
        if is_behind and self._lock.acquire(blocking=False):  # whoever has it reads the newest version at its end
            try:
                self._living.refresh()
                self._read_newest()
            finally:
                self._lock.release()

    def _change(self, change: Callable[[Database], Change]) -> Change:
        if self._living is None:
            raise BadRequest("the database of this server cannot be changed; serve one that `retroflow db build` made.")
        with self._lock:
            try:
                return change(self._living)
            finally:
                self._read_newest()

    def _read_newest(self) -> None:
        assert self._living is not None
        number = self._living.version.number
        if number == self._reader.version:
            return
        opened = self._opened.with_database(self._living)
        before, self._reader = self._reader, _Reader(opened.database, number)
        self._decoding.retriever = opened.database
        if before.database is not None:
            before.database.close()
