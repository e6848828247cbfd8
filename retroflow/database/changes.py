"""What documents change in a database: compared by id and by the hash of their text before anything is written."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retroflow.console import progress
from retroflow.database.documents import document_blocks, sha256_of
from retroflow.database.snapshot import Snapshot
from retroflow.errors import CorpusError
from retroflow.protocols import Document
from retroflow.store.array_file import Array
from retroflow.store.segment import StoredDocument


@dataclass
class Changes:
    """Documents compared with a version.

    Attributes:
        before: the version.
        seen: bool, for each of its documents whether it was given again.
        added: id and hash of documents that are new.
        changed: of those with another text; with `replaced`, the numbers of what they replace.
        moved: numbers of documents of which only the title or source is another, and their new records.
    """

    before: Snapshot
    seen: NDArray[np.bool_]
    added: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    replaced: list[int] = field(default_factory=list)
    moved: dict[int, StoredDocument] = field(default_factory=dict)

    @property
    def same(self) -> int:
        """Documents with the same text."""
        return int(self.seen.sum()) - len(self.changed)

    @property
    def unseen(self) -> list[int]:
        """Numbers of the version's documents that were not given."""
        return np.flatnonzero(~self.seen).tolist()

    def blocks(self, documents: Iterable[Document]) -> Iterator[dict[str, Array]]:
        """Yield what the next version adds: new and changed documents, cut and embedded.

        Args:
            documents: all of them again.

        Raises:
            CorpusError: one is not as it was when they were compared.
        """
        identity, wanted = self.before.identity, self.added | self.changed
        if wanted:
            with progress("cut and embed documents", len(wanted), "documents") as advance:
                yield from document_blocks(self._chosen(documents, wanted), identity, advance)

    def _chosen(self, documents: Iterable[Document], wanted: dict[str, str]) -> Iterator[Document]:
        left = dict(wanted)
        for document in documents:
            if (expected := left.pop(document.id, None)) is None:
                continue
            if sha256_of(document.text) != expected:
                raise _unsteady()
            yield document
        if left:
            raise _unsteady()


def compare(before: Snapshot, documents: Iterable[Document], check: Callable[[Document, bool], None]) -> Changes:
    """Compare documents with a version by their ids and the hashes of their texts.

    Args:
        before: the version.
        documents: with distinct ids.
        check: called with each document and whether the version has its id; may raise.
    """
    view = before.view
    changes = Changes(before, np.zeros(view.num_documents, dtype=bool))
    with progress("compare documents", None, "documents") as advance:
        for document in documents:
            number = view.number(document.id)
            check(document, number is not None)
            sha256 = sha256_of(document.text)
            if number is None:
                changes.added[document.id] = sha256
            else:
                changes.seen[number] = True
                stored, record = (
                    view.document(number),
                    StoredDocument(document.id, document.title, document.source, sha256),
                )
                if stored.sha256 != sha256:
                    changes.changed[document.id] = sha256
                    changes.replaced.append(number)
                elif stored != record:
                    changes.moved[number] = record
            advance(1)
    return changes


def _unsteady() -> CorpusError:
    return CorpusError("The documents changed while they were read. Run the command again once nothing writes to them.")
