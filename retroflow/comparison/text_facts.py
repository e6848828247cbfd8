"""What the table must know of the text: documents, bytes, words and overlap, kept beside the rows in text.npz.

With it, all numbers of a comparison are computed from files, without the model and the data.

Shapes: S sequences, n tokens of a sequence, l chunks of a sequence, m tokens of a chunk.
"""

import io
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retroflow.comparison.subject import Subject
from retroflow.corpus.tokenizer import load_tokenizer
from retroflow.data.batch import NOT_PREDICTED
from retroflow.data.windows import WindowTable
from retroflow.evaluation.leakage import overlaps_of
from retroflow.pipeline.embeddings import chunk_texts
from retroflow.protocols import Int64Array
from retroflow.store.sealed_arrays import write_numbers

TEXT_FILE = "text.npz"
_CHUNKS_AT_ONCE = 1024


@dataclass(frozen=True)
class TextFacts:
    """Facts about the compared sequences; the text's last one may have fewer tokens than n.

    Attributes:
        sequences: int64 [S], ascending.
        chunks: int64 [S], chunks of each sequence.
        documents: int64 [S, n], document of the token that each position predicts; -1 where nothing is predicted.
        bytes: int64 [S, l], UTF-8 bytes of each chunk's text.
        words: int64 [S, l], words that begin in each chunk, separated by white space; -1 if there is no text.
        overlaps: float64 [S, l], longest run of tokens that a chunk shares with what was retrieved for it, or, with
            frequent lookups, with what its tokens read / m; NaN if the model reads nothing.
        of: sequences of the text.
    """

    sequences: Int64Array
    chunks: Int64Array
    documents: Int64Array
    bytes: Int64Array
    words: Int64Array
    overlaps: NDArray[np.float64]
    of: int

    @property
    def is_retrieved(self) -> bool:
        """Whether overlaps with retrieved text are known: the model reads neighbours."""
        return not bool(np.isnan(self.overlaps).any())

    @property
    def chunk_length(self) -> int:
        """Tokens of a chunk, m."""
        return int(self.documents.shape[1] // self.bytes.shape[1])

    def write(self, folder: Path) -> None:
        """Write text.npz.

        Raises:
            RetroflowError: it cannot be written.
        """
        stream = io.BytesIO()
        np.savez(stream, **{each.name: getattr(self, each.name) for each in fields(self)})
        write_numbers(folder / TEXT_FILE, stream.getvalue())

    @classmethod
    def read(cls, folder: Path) -> "TextFacts | None":
        """Read text.npz; None if it is missing or damaged."""
        try:
            with np.load(folder / TEXT_FILE, allow_pickle=False) as stored:
                values = {each.name: stored[each.name] for each in fields(cls)}
        except Exception:  # whatever is wrong with it, it is made again
            return None
        return cls(**values | {"of": int(values["of"])})


def facts_of(subject: Subject) -> TextFacts:
    """Read the facts about the sequences of a subject."""
    chunks, length = subject.splits.valid_chunks, subject.splits.sequence_chunks
    rows = subject.sequences[:, None] * length + np.arange(length)  # [S, l]
    exists = rows < len(chunks)
    inside = np.minimum(rows, len(chunks) - 1)
    return TextFacts(
        sequences=subject.sequences,
        chunks=exists.sum(axis=1),
        documents=_documents(subject),
        bytes=np.where(exists, chunks.num_bytes[inside], 0).astype(np.int64),
        words=np.where(exists, _words(subject, inside), 0),
        overlaps=overlaps_with(subject, subject.found) if subject.reads else np.full(rows.shape, np.nan),
        of=len(subject.splits.validation()),
    )


def _documents(subject: Subject) -> Int64Array:
    chunks, m = subject.splits.valid_chunks, subject.splits.valid_chunks.chunk_length
    found = np.full((len(subject.sequences), subject.sequence_length), -1, dtype=np.int64)
    for place in range(len(subject.sequences)):
        one = subject.sequences[place : place + 1]
        targets = subject.batch(one, None).targets[0].numpy()
        positions = int(one[0]) * subject.sequence_length + 1 + np.arange(len(targets))
        of_token = chunks.document_ids[np.minimum(positions // m, len(chunks) - 1)]
        found[place, : len(targets)] = np.where(targets == NOT_PREDICTED, -1, of_token)
    return found


def _words(subject: Subject, rows: Int64Array) -> Int64Array:
    """Count the words that begin in chunks int64 [S, l]: one that was begun in the chunk before is not counted."""
    chunks, folder = subject.splits.valid_chunks, subject.splits.tokenizer
    if folder is None:
        return np.full(rows.shape, -1, dtype=np.int64)
    tokenizer = load_tokenizer(str(folder))
    wanted = np.unique(np.concatenate([rows.ravel(), np.maximum(rows.ravel() - 1, 0)]))
    texts: dict[int, str] = {}
    for first in range(0, len(wanted), _CHUNKS_AT_ONCE):
        part = wanted[first : first + _CHUNKS_AT_ONCE]
        texts |= zip(part.tolist(), chunk_texts(chunks, tokenizer, part), strict=True)

    def count(row: int) -> int:
        text = texts[row]
        before = texts[row - 1] if row and chunks.document_ids[row - 1] == chunks.document_ids[row] else ""
        continues = bool(before and text) and not before[-1].isspace() and not text[0].isspace()
        return len(text.split()) - continues

    return np.array([count(row) for row in rows.ravel().tolist()], dtype=np.int64).reshape(rows.shape)


def overlaps_with(subject: Subject, table: Int64Array | WindowTable) -> NDArray[np.float64]:
    """Return each chunk's overlap with the text that a table holds for it (`overlaps_of`), float64 [S, l]."""
    length, lookups_read = subject.splits.sequence_chunks, subject.model.lookups_read
    found = np.zeros((len(subject.sequences), length))
    exists = subject.sequences[:, None] * length + np.arange(length) < len(subject.splits.valid_chunks)
    found[exists] = overlaps_of(subject.splits, table, subject.sequences, lookups_read=lookups_read)
    return found
