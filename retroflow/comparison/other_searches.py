"""Other ways to search a comparison's database: another retriever, or a part of the documents.

Their indexes are built in memory, from the vectors and texts of the database as they are stored. Nothing is embedded
again, but where the database has no vectors and a retriever needs them.

Shapes: T chunks of the database, c chunks that are looked up, k neighbours, D embedding width.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.comparison.subject import Embedded, Subject, Table
from retroflow.components import create_retriever
from retroflow.console import progress, say
from retroflow.errors import RetrieverError, UsageError
from retroflow.pipeline.embeddings import ChunkTexts, chunk_texts
from retroflow.pipeline.lookups import LiveSearch, Searched, look_up, nearest_chunks
from retroflow.protocols import Float32Array, Int64Array, Neighbours, Queries, VectorSource
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.retrieval.keys import Keys

RECALL_CHUNKS = 500
"""Chunks whose neighbours are compared with exact search."""

_VECTORS_AT_ONCE = 4096

EXACT = {"name": "exact"}


@dataclass(frozen=True)
class PartOfRows:
    """A retriever over some rows of a database, that answers with their numbers in it.

    Attributes:
        retriever: over the rows.
        rows: int64, ascending.
    """

    retriever: CheckedRetriever
    rows: Int64Array

    def search(self, queries: Queries, k: int, /) -> Neighbours:
        """Find k neighbours of every query."""
        found = self.retriever.search(queries, k)
        return Neighbours(np.where(found.ids < 0, -1, self.rows[found.ids]), found.scores)


class OtherSearches:
    """Makes searches of a subject's database.

    Args:
        subject: what is measured; it can be searched.
        embed: opens or makes vectors of a database that has none.
    """

    def __init__(self, subject: Subject, embed: Callable[[], Embedded]) -> None:
        self._subject, self._embed = subject, embed
        self._built: tuple[Mapping[str, Any], tempfile.TemporaryDirectory[str]] | None = None
        self._distances: dict[int, tuple[Int64Array, Float32Array, Float32Array]] = {}

    @cached_property
    def own(self) -> LiveSearch:
        """The search that the model uses.

        Raises:
            UsageError: there is none.
        """
        if self._subject.search is None:
            raise UsageError("nothing can be looked up: the run has no index of its own; name one with database='DB'.")
        return self._subject.search()

    @cached_property
    def embedded(self) -> Embedded:
        """The vectors of the database."""
        if self.own.embedder is None or self._subject.vectors is None:
            return self._embed()
        return Embedded(self.own.embedder, self._subject.vectors())

    def by(self, section: Mapping[str, Any], rows: Int64Array | None = None) -> LiveSearch:
        """Build a retriever.

        Args:
            section: its name and options, as in a recipe.
            rows: int64, ascending, of the database; None for all of them.

        Raises:
            RetroflowError: it is not installed, or cannot be built of so few.
        """
        retriever = create_retriever(section)
        embedded = self.embedded if retriever.capabilities.reads_vectors else None
        made_of = {key: value for key, value in section.items() if key != "search"}
        if rows is None and self._built is not None and self._built[0] == made_of:
            retriever.load(Path(self._built[1].name) / "index")  # another search of the same index
        else:
            count = len(self._subject.splits.database if rows is None else rows)
            say(f"building {retriever.owner} over {count:,} chunks")
            retriever.build(Keys(None if embedded is None else _part(embedded.vectors, rows), self._texts(rows)))
            self._keep(retriever, made_of if rows is None else None)
        searched: Searched = retriever if rows is None else PartOfRows(retriever, rows)
        return LiveSearch(self.own.tokenizer, None if embedded is None else embedded.embedder, searched)

    def _keep(self, retriever: CheckedRetriever, made_of: Mapping[str, Any] | None) -> None:
        """Keep an index for a search with other options; that of a part of the database is not needed again."""
        self._built = None
        if made_of is not None:
            folder = tempfile.TemporaryDirectory(prefix="retroflow-index-")
            retriever.save(Path(folder.name) / "index")
            self._built = made_of, folder

    def of_documents(self, section: Mapping[str, Any], share: float) -> tuple[LiveSearch, dict[str, Any]]:
        """Build a retriever over a share of the documents; a smaller share has documents of every larger one.

        Where the retriever cannot be built of so few chunks, exact search takes its place, which the facts say.
        """
        documents = np.asarray(self._subject.splits.database.document_ids[np.arange(self._count)])
        numbers = np.random.default_rng([self._subject.seed, self._count]).permutation(np.unique(documents))
        chosen = numbers[: max(1, round(share * len(numbers)))]
        rows = np.flatnonzero(np.isin(documents, chosen))
        facts: dict[str, Any] = {"documents": len(chosen), "chunks": len(rows)}
        try:
            return self.by(section, rows), facts
        except (RetrieverError, UsageError) as error:
            if not create_retriever(section).capabilities.reads_vectors:
                raise
            say(f"{len(rows):,} chunks are searched exactly: {error}")
            return self.by(EXACT, rows), facts | {"retriever": "exact, since there are too few for its own"}

    def find(self, search: LiveSearch, k: int) -> Table:
        """Find what the model reads: neighbours of the chunks of the compared sequences, or of their windows."""
        subject, splits = self._subject, self._subject.splits
        m, length = splits.valid_chunks.chunk_length, splits.sequence_chunks
        if subject.step is not None and subject.step != m:
            windows = len(subject.sequences) * ((length - 1) * m // subject.step + 1)
            with progress(f"looking up every {subject.step} tokens", windows, "windows") as shown:
                return look_up(search, splits, subject.sequences, step=subject.step, k=k, advance=self._advance(shown))
        ids = np.full((len(splits.valid_chunks), k), -1, dtype=np.int64)
        rows = self._compared
        with progress("looking up chunks", len(rows), "chunks") as shown:
            ids[rows] = nearest_chunks(search, splits, rows, k, advance=self._advance(shown))
        return ids

    def recall(self, search: LiveSearch | None, k: int) -> float | None:
        """Return the share of the k nearest chunks that a search finds; None draws chunks at random.

        Nearest is by squared distance of the vectors. An answer counts if it is as near as the k-th nearest chunk, so
        an equal copy is as good. The recall is None, which is said, if the database has no vectors.
        """
        try:
            _ = self.embedded
        except UsageError as error:
            say(f"the recall is not known: {error}")
            return None
        rows, queries, farthest = self._judged(k)
        if search is None:
            drawn = np.random.default_rng([self._subject.seed, k])
            found = drawn.integers(self._count, size=(len(rows), k))
        else:
            found = nearest_chunks(search, self._subject.splits, rows, k, advance=lambda chunks: None, own_too=True)
        hits = 0
        for query, ids, worst in zip(queries, found, farthest, strict=True):
            vectors = _part(self.embedded.vectors, ids[ids >= 0]).astype(np.float32)
            hits += int((((vectors - query) ** 2).sum(-1) <= worst + 1e-4 * max(1.0, worst)).sum())
        return hits / found.size

    def _judged(self, k: int) -> tuple[Int64Array, Float32Array, Float32Array]:
        """Return chunks int64 [c], their vectors [c, D], and the distance [c] of the k-th nearest chunk."""
        if k not in self._distances:
            compared = self._compared
            rows = compared[:: -(-len(compared) // RECALL_CHUNKS)]
            texts = chunk_texts(self._subject.splits.valid_chunks, self.own.tokenizer, rows)
            queries = self.embedded.embedder.embed(texts).astype(np.float16).astype(np.float32)
            nearest = np.full((len(rows), k), np.inf, dtype=np.float32)
            for first in range(0, self._count, _VECTORS_AT_ONCE):
                block = np.asarray(self.embedded.vectors[first : first + _VECTORS_AT_ONCE], dtype=np.float32)
                distances = (queries**2).sum(1)[:, None] - 2 * queries @ block.T + (block**2).sum(1)
                nearest = np.sort(np.concatenate([nearest, distances], axis=1), axis=1)[:, :k]
            self._distances[k] = rows, queries, nearest[:, -1]
        return self._distances[k]

    @property
    def _count(self) -> int:
        return len(self._subject.splits.database)

    @property
    def _compared(self) -> Int64Array:
        """Chunks of the compared sequences."""
        splits = self._subject.splits
        rows = (self._subject.sequences[:, None] * splits.sequence_chunks + np.arange(splits.sequence_chunks)).ravel()
        return rows[rows < len(splits.valid_chunks)]

    def _advance(self, shown: Callable[[int], None]) -> Callable[[int], None]:
        def advance(count: int) -> None:
            self._subject.check()
            shown(count)

        return advance

    def _texts(self, rows: Int64Array | None) -> Any:
        database, tokenizer = self._subject.splits.database, self.own.tokenizer
        return ChunkTexts(database, tokenizer) if rows is None else chunk_texts(database, tokenizer, rows)


def _part(vectors: VectorSource, rows: Int64Array | None) -> Any:
    """Return some rows of vectors, read in ranges; all of them, unread, if rows is None."""
    if rows is None:
        return vectors
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return np.concatenate([vectors[int(run[0]) : int(run[-1]) + 1] for run in runs if len(run)] or [vectors[0:0]])
