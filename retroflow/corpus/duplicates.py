"""Remove blank documents and exact duplicates from a stream of any length, in constant memory."""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator

from retroflow.errors import CorpusError, RetroflowError
from retroflow.protocols import Counts, Document

# Memory for digests (about half a million documents); the rest is in a temporary file.
CACHE_KIB = 16 * 1024


class SeenTexts:
    """A set of text digests on disk: memory does not grow with the number of documents.

    A Python set would take about 100 bytes per document. SQLite's unnamed database is a temporary file. SQLite creates
    it only when the cache is full and removes it, even after a kill.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for pragma in (f"cache_size = -{CACHE_KIB}", "journal_mode = OFF", "synchronous = OFF"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, text: str) -> bool:
        """Add a text; return False if it was already in the set.

        Raises:
            RetroflowError: the temporary folder is full or cannot be written.
        """
        # 128 bits: at 10^12 documents the chance of one wrong drop is below 10^-14.
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        try:
            return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1
        except sqlite3.Error as error:
            raise RetroflowError(
                f"Dropping duplicates: the list of seen documents could not be written to the temporary folder "
                f"({error}). Free some space there, or set SQLITE_TMPDIR to a folder that has it."
            ) from error

    def close(self) -> None:
        """Release the memory and the temporary file."""
        self._database.close()


def _one_split_by_id(document: Document) -> str:
    return f'have the id "{document.id}", which decides the split. Give every document a different id.'


def distinct_documents(
    documents: Iterator[Document],
    counts: Counts,
    *,
    place: str,
    valid_share: float | None,
    valid_key: str = "corpus.valid_path",
    one_split: Callable[[Document], str] = _one_split_by_id,
) -> Iterator[Document]:
    """Yield documents that are neither blank nor a copy of an earlier one, and count the others.

    The first of several copies is kept, in any split, so that no validation text is also a training text.

    Args:
        documents: the stream.
        counts: updated during the stream.
        place: recipe key and value for errors, such as 'corpus.path "docs"'.
        valid_share: the share to hold out; None if validation documents have a separate path.
        valid_key: recipe key of that path.
        one_split: for a document, a sentence on what keeps it in one split with others, for the error if that keeps
            all of them there; by default their id.

    Raises:
        CorpusError: the stream has no training document, or none for the requested validation split.
    """
    seen = SeenTexts()
    ties: set[str] = set()  # one or two of them: whether both splits can be filled
    try:
        for document in documents:
            if not document.text or document.text.isspace():
                counts.empty += 1
            elif not seen.add(document.text):
                counts.duplicates += 1
            else:
                if document.split == "valid":
                    counts.valid += 1
                else:
                    counts.train += 1
                counts.num_bytes += len(document.text.encode())
                if len(ties) < 2:
                    ties.add(one_split(document))
                yield document
    finally:
        seen.close()
    if valid_share and len(ties) == 1 and 0 in (counts.train, counts.valid):
        raise CorpusError(_tied(counts, place, *ties))
    _check_splits(counts, place=place, valid_share=valid_share, valid_key=valid_key)


def _tied(counts: Counts, place: str, tie: str) -> str:
    number = counts.train + counts.valid
    if number == 1:
        return (
            f"{place} has only one document ({counts.summary()}), but at least two are needed, one for training and "
            "one for validation. Give more documents, or divide this one."
        )
    return f"{place}: all {number:,} documents {tie}"


def _check_splits(counts: Counts, *, place: str, valid_share: float | None, valid_key: str) -> None:
    if counts.train + counts.valid == 0:
        raise CorpusError(f"{place} holds no text ({counts.summary()}). Point it at files with text in them.")
    if counts.train == 0 and valid_share is None:
        raise CorpusError(
            f"Every document of {place} is also in {valid_key}, so that none is left for training. Name different text."
        )
    if counts.train == 0:
        raise CorpusError(
            f"{place}: all {counts.valid} documents fell into the validation split and none is left for training. "
            "Lower corpus.valid_share, or give more documents."
        )
    if counts.valid == 0 and valid_share is None:
        raise CorpusError(
            f"{valid_key}: every document is also in {place} ({counts.summary()}). Use different files for the two."
        )
    if counts.valid == 0 and valid_share:
        raise CorpusError(
            f"corpus.valid_share: {valid_share} of {counts.train} documents selects none for validation. "
            "Raise corpus.valid_share, or give more documents; a model is always evaluated on text that is held out."
        )
