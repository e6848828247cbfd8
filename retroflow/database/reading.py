"""What readers ask of a version: its documents, their text, and what is near to a text.

Shapes: q queries, D embedding width.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retroflow.database.snapshot import Snapshot
from retroflow.errors import UsageError
from retroflow.protocols import Float32Array
from retroflow.retrieval.keys import LazyQueries


@dataclass(frozen=True)
class Listed:
    """A document in a list.

    Attributes:
        id, title, source: as it was given.
        chunks: how many it has.
        sha256: of its text.
    """

    id: str
    title: str
    source: str
    chunks: int
    sha256: str


@dataclass(frozen=True)
class Hit:
    """A chunk that a search found.

    Attributes:
        document, title, source: of its document.
        chunk: its place in the document, from 0.
        text: of the chunk.
        continuation: text of the chunk after it in its document, empty at the end.
        score: the retriever's, higher is better.
    """

    document: str
    title: str
    source: str
    chunk: int
    text: str
    continuation: str
    score: float


def list_documents(snapshot: Snapshot) -> list[Listed]:
    """Return the documents, ordered by id."""
    view = snapshot.view
    counts = np.diff(view.starts).tolist()
    records = [view.document(number) for number in range(view.num_documents)]
    return [
        Listed(record.id, record.title, record.source, count, record.sha256)
        for record, count in zip(records, counts, strict=True)
    ]


def number_of(snapshot: Snapshot, id: str) -> int:
    """Return the number of the document with this id.

    Raises:
        UsageError: there is none.
    """
    number = snapshot.view.number(id)
    if number is None:
        near = difflib.get_close_matches(id, snapshot.view.ids, n=1)
        meant = f' Did you mean "{near[0]}"?' if near else " `list` shows them."
        raise UsageError(f'the database has no document "{id}".{meant}')
    return number


def queries_of(snapshot: Snapshot, texts: Sequence[str]) -> LazyQueries:
    """Return texts as queries, which take the path that the chunks took."""

    def vectors() -> Float32Array:
        embedder = snapshot.identity.embedder
        assert embedder is not None
        # keys are stored as float16, so a query is rounded, too
        return embedder.embed(list(texts)).astype(np.float16).astype(np.float32)

    return LazyQueries(len(texts), vectors=vectors, texts=lambda: texts)


def search(snapshot: Snapshot, text: str, num_neighbours: int) -> list[Hit]:
    """Find the chunks that are nearest to a text, best first.

    Raises:
        UsageError: the text is blank.
        RetroflowError: the embedder or retriever cannot be used here.
    """
    if not text.strip():
        raise UsageError("search: the text is blank; give words to search for.")
    view, tokenizer = snapshot.view, snapshot.tokenizer
    found = snapshot.search.search(queries_of(snapshot, [text]), num_neighbours)
    hits = []
    for chunk, score in zip(found.ids[0].tolist(), found.scores[0].tolist(), strict=True):
        if chunk < 0:
            break
        number = int(view.document_ids[chunk])
        first, stop = view.starts[number : number + 2].tolist()
        record = view.document(number)
        passage, continuation = (
            tokenizer.decode(view.tokens[each][: int(view.lengths[each])]) if each < stop else ""
            for each in (chunk, chunk + 1)
        )
        hits.append(Hit(record.id, record.title, record.source, chunk - first, passage, continuation, score))
    return hits


def describe(snapshot: Snapshot) -> dict[str, Any]:
    """Return what a version holds and what the database was made with, as JSON values."""
    version, identity = snapshot.version, snapshot.identity
    return {
        "version": version.number,
        "documents": version.documents,
        "chunks": version.chunks,
        "fingerprint": version.fingerprint,
        "segments": len(version.segments),
        "removed_share": round(version.dead_share, 4),
        "num_bytes": sum(path.stat().st_size for path in snapshot.folder.rglob("*") if path.is_file()),
        "chunk_length": identity.chunk_length,
        "tokenizer": identity.tokenizer_fingerprint,
        **identity.sections,
    }
