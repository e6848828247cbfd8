"""Neighbours of the chunks of a prepared split in a database, to evaluate a model with it.

Shapes: N chunks of the split, k neighbours.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from retroflow.console import progress
from retroflow.corpus.tokenizer import Tokenizer
from retroflow.database.reading import queries_of
from retroflow.database.snapshot import Snapshot
from retroflow.database.view import Rows, View
from retroflow.pipeline.embeddings import chunk_texts
from retroflow.protocols import Int64Array, Neighbours
from retroflow.store.chunk_store import ChunkSource, DocumentRecord

CHUNKS_AT_ONCE = 512


def neighbours_of(
    snapshot: Snapshot, split: ChunkSource, tokenizer: Tokenizer, k: int, rows: Int64Array | None = None
) -> Neighbours:
    """Find the neighbours of every chunk, none of them from a document with the id of its own.

    Args:
        snapshot: the version to search.
        split: N chunks, by the same tokenizer and chunk length.
        tokenizer: decodes them.
        k: neighbours of a chunk.
        rows: of the chunks to look up, ascending; None for all of them.

    Returns:
        Numbers in the snapshot's view, int64 [N, k], and scores; -1 for chunks that were not looked up.
    """
    own = np.array([-1 if (number := snapshot.view.number(id)) is None else number for id in _ids(split)], np.int64)
    documents = split.document_ids[:] - split.document_ids[0]
    ids = np.full((len(split), k), -1, dtype=np.int64)
    scores = np.full((len(split), k), -np.inf, dtype=np.float32)
    wanted = np.arange(len(split), dtype=np.int64) if rows is None else rows
    with progress("find neighbours in the database", len(wanted), "chunks") as advance:
        for start in range(0, len(wanted), CHUNKS_AT_ONCE):
            part = wanted[start : start + CHUNKS_AT_ONCE]
            queries = queries_of(snapshot, chunk_texts(split, tokenizer, part))
            ids[part], scores[part] = snapshot.search.search(queries, k, own[documents[part]])
            advance(len(part))
    return Neighbours(ids, scores)


def found_for(snapshot: Snapshot, texts: Sequence[str], k: int) -> Neighbours:
    """Find the chunks of a version that are nearest to texts.

    Returns:
        Numbers in the snapshot's view, int64 [q, k], -1 where there is none, and scores.
    """
    ids = np.full((len(texts), k), -1, dtype=np.int64)
    scores = np.full(ids.shape, -np.inf, dtype=np.float32)
    with progress("find passages in the database", len(texts), "texts") as advance:
        for start in range(0, len(texts), CHUNKS_AT_ONCE):
            rows = slice(start, min(start + CHUNKS_AT_ONCE, len(texts)))
            queries = queries_of(snapshot, list(texts[rows]))
            ids[rows], scores[rows] = snapshot.search.search(queries, k)
            advance(rows.stop - rows.start)
    return Neighbours(ids, scores)


class NumberedLike:
    """A view whose documents have the numbers of those with the same ids in a split; a `ChunkSource`.

    So a sequence of the split is not shown text of its own documents. Other documents have negative numbers.
    """

    def __init__(self, view: View, split: ChunkSource) -> None:
        self.chunk_length, self.vocabulary_size = view.chunk_length, view.vocabulary_size
        self.end_of_text = view.end_of_text
        self._view = view
        self._numbers = -1 - np.arange(view.num_documents)
        first = int(split.document_ids[0])
        for place, id in enumerate(_ids(split)):
            if (number := view.number(id)) is not None:
                self._numbers[number] = first + place

    def __len__(self) -> int:
        return len(self._view)

    @property
    def tokens(self) -> Rows:
        """As of the view."""
        return self._view.tokens

    @property
    def lengths(self) -> Rows:
        """As of the view."""
        return self._view.lengths

    @property
    def num_bytes(self) -> Rows:
        """As of the view."""
        return self._view.num_bytes

    @property
    def document_ids(self) -> Rows:
        """Number of each chunk's document."""

        def read(chunks: Int64Array) -> Any:
            return self._numbers[self._view.document_ids[chunks]]

        return Rows((len(self),), np.dtype(np.int64), read)

    @property
    def num_documents(self) -> int:
        """As of the view."""
        return self._view.num_documents

    def document(self, document_id: int) -> DocumentRecord:
        """Look up a document by its number."""
        return self._view.document(int(np.flatnonzero(self._numbers == document_id)[0]))

    def release(self) -> None:
        """As of the view."""
        self._view.release()


def _ids(split: ChunkSource) -> list[str]:
    first = int(split.document_ids[0])
    return [split.document(first + place).id for place in range(split.num_documents)]
