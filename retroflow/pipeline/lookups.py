"""Lookups with text that is in no table: what generation writes, and windows of a sequence between chunk borders.

A query takes the path that the keys took: its tokens are decoded to text by the same tokenizer. If the retriever reads
vectors, the text is embedded by the same embedder, and rounded to float16.

Text of a sequence's own documents is never shown to it (retroflow/data/dataset.py), so lookups for sequences search
until k neighbours are from other documents, or the database has no more.

Shapes: q queries, k neighbours, S sequences of l chunks, m tokens of a chunk, s tokens between two lookups, W windows,
e documents that a query does not get, f candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retroflow.components import create_embedder
from retroflow.corpus.tokenizer import Tokenizer, load_tokenizer
from retroflow.data.windows import WindowTable
from retroflow.embedding.checked import CheckedEmbedder
from retroflow.pipeline.prepare import Prepared
from retroflow.pipeline.recipe_retriever import RecipeRetriever
from retroflow.pipeline.splits import Splits
from retroflow.protocols import Float32Array, Int64Array, Neighbours, Queries
from retroflow.recipe import Recipe
from retroflow.retrieval.keys import LazyQueries
from retroflow.store.chunk_store import ChunkSource

QUERIES_AT_ONCE = 256
"""Windows that are looked up between two reports of progress."""

_CANDIDATES_AT_ONCE = 1 << 18
"""Of one call to the retriever, if it has to look beyond the first k."""


class Searched(Protocol):
    """A retriever, as far as it is asked here."""

    def search(self, queries: Queries, k: int, /) -> Neighbours:
        """Find k neighbours of every query."""
        ...


@dataclass(frozen=True)
class OtherDocuments:
    """What queries may find: chunks of all documents but some.

    Attributes:
        database: what is searched.
        excluded: int64 [q, e], documents whose chunks a query does not get.
    """

    database: ChunkSource
    excluded: Int64Array

    def allow(self, rows: Int64Array, ids: Int64Array) -> NDArray[np.bool_]:
        """Return bool [r, f], which of the ids [r, f] that were found for queries [r] are allowed."""
        documents = np.asarray(self.database.document_ids[np.maximum(ids, 0)])
        own: NDArray[np.bool_] = (documents[..., None] == self.excluded[rows][:, None]).any(axis=-1)
        return (ids >= 0) & ~own


@dataclass(frozen=True)
class LiveSearch:
    """A database that is searched with tokens.

    Attributes:
        tokenizer: of the tokens.
        embedder: with the state saved beside the keys; None if the retriever reads texts.
        retriever: with its index.
    """

    tokenizer: Tokenizer
    embedder: CheckedEmbedder | None
    retriever: Searched

    def nearest(self, queries: Sequence[Sequence[int]], k: int, others: OtherDocuments | None = None) -> Neighbours:
        """Find the neighbours of windows, [q, k].

        End-of-text tokens are not text: a window without other tokens finds nothing, -1.

        Args:
            queries: tokens of each window.
            k: neighbours of a window; fewer only if the retriever has no more that are allowed.
            others: what is allowed; None for everything.
        """
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full(ids.shape, -np.inf, dtype=np.float32)
        end_of_text = self.tokenizer.end_of_text
        texts = self.tokenizer.decode_batch([[token for token in query if token != end_of_text] for query in queries])
        asked = np.array([row for row, text in enumerate(texts) if text], dtype=np.int64)
        if len(asked):
            own = [texts[row] for row in asked.tolist()]
            found = LazyQueries(len(own), vectors=lambda: self._embedded(own), texts=lambda: own)
            if others is None:
                ids[asked], scores[asked] = self.retriever.search(found, k)
            else:
                of_asked = OtherDocuments(others.database, others.excluded[asked])
                ids[asked], scores[asked] = self._nearest_of(found, k, of_asked)
        return Neighbours(ids, scores)

    def _embedded(self, texts: list[str]) -> Float32Array:
        assert self.embedder is not None
        # keys are stored as float16, so a query is rounded, too
        return self.embedder.embed(texts).astype(np.float16).astype(np.float32)

    def _nearest_of(self, queries: LazyQueries, k: int, others: OtherDocuments) -> Neighbours:
        """Find the k nearest of those allowed; candidates are doubled for the queries that lack some."""
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full(ids.shape, -np.inf, dtype=np.float32)
        lacking, fetch, most = np.ones(len(queries), dtype=bool), k, max(k, len(others.database))
        while lacking.any():
            rows, together = np.flatnonzero(lacking), max(1, _CANDIDATES_AT_ONCE // fetch)
            for part in np.split(rows, range(together, len(rows), together)):
                answer = self.retriever.search(queries.part(part), fetch)
                allowed = others.allow(part, answer.ids)
                best = np.argsort(~allowed, axis=1, kind="stable")[:, :k]
                is_allowed = np.take_along_axis(allowed, best, axis=1)
                ids[part] = np.where(is_allowed, np.take_along_axis(answer.ids, best, axis=1), -1)
                scores[part] = np.where(is_allowed, np.take_along_axis(answer.scores, best, axis=1), -np.inf)
                lacking[part] = ~is_allowed[:, -1] & (answer.ids[:, -1] >= 0) & (fetch < most)
            fetch = min(2 * fetch, most)
        return Neighbours(ids, scores)


def open_search(recipe: Recipe, prepared: Prepared) -> LiveSearch:
    """Open the database of prepared artifacts.

    Args:
        recipe: its sections embedder and retriever are those of the artifacts.
        prepared: with an index.

    Raises:
        RetroflowError: as the embedder or the retriever.
    """
    assert prepared.index is not None
    embedder = None
    if prepared.train_embeddings is not None:
        embedder = create_embedder(recipe.section("embedder"))
        embedder.load(prepared.train_embeddings.parent / "embedder")
    retriever = RecipeRetriever(recipe.section("retriever")).load(prepared.index.parent)
    return LiveSearch(load_tokenizer(str(prepared.tokenizer)), embedder, retriever)


def own_documents(splits: Splits, sequences: Int64Array) -> Int64Array:
    """Return the documents of validation sequences [S] and of their last targets, int64 [S, l + 1]."""
    chunks = sequences[:, None] * splits.sequence_chunks + np.arange(splits.sequence_chunks + 1)
    return np.asarray(splits.valid_chunks.document_ids[np.minimum(chunks, len(splits.valid_chunks) - 1)])


def nearest_chunks(
    search: LiveSearch,
    splits: Splits,
    rows: Int64Array,
    k: int,
    *,
    advance: Callable[[int], None],
    own_too: bool = False,
) -> Int64Array:
    """Find the neighbours of chunks.

    Args:
        search: the database of the splits.
        splits: the data.
        rows: int64 [c], of the validation split.
        k: neighbours of a chunk.
        advance: called with the number of finished chunks; may raise to stop.
        own_too: whether a chunk finds text of its sequence's own documents.

    Returns:
        int64 [c, k], rows of the database, -1 = none.
    """
    chunks = splits.valid_chunks
    ids = np.full((len(rows), k), -1, dtype=np.int64)
    for first in range(0, len(rows), QUERIES_AT_ONCE):
        part = rows[first : first + QUERIES_AT_ONCE]
        lengths = np.asarray(chunks.lengths[part]).tolist()
        texts = [row[:length].tolist() for row, length in zip(chunks.tokens[part], lengths, strict=True)]
        own = own_documents(splits, part // splits.sequence_chunks)
        others = None if own_too else OtherDocuments(splits.database, own)
        ids[first : first + len(part)] = search.nearest(texts, k, others).ids
        advance(len(part))
    return ids


def look_up(
    search: LiveSearch,
    splits: Splits,
    sequences: Int64Array,
    *,
    step: int,
    k: int,
    advance: Callable[[int], None],
    query_tokens: int | None = None,
) -> WindowTable:
    """Find the neighbours of every window of validation sequences, none of them from the sequence's own documents.

    Args:
        search: the database of the splits.
        splits: the data.
        sequences: int64 [S], ascending, of the validation split.
        step: s.
        k: neighbours of a window.
        advance: called with the number of finished windows; may raise to stop.
        query_tokens: the last tokens of a window, or those before it in the sequence, too, that are searched for; None
            for m.
    """
    chunks, m = splits.valid_chunks, splits.valid_chunks.chunk_length
    length = splits.sequence_chunks * m
    ends = (sequences * length)[:, None] + np.arange(m, length + 1, step)  # [S, W]
    ids = np.full((*ends.shape, k), -1, dtype=np.int64)
    scores = np.full(ids.shape, -np.inf, dtype=np.float32)
    own = own_documents(splits, sequences)  # [S, l + 1]
    # A shorter last sequence has fewer windows.
    rows, places = np.nonzero(ends <= len(chunks) * m)
    for first in range(0, len(rows), QUERIES_AT_ONCE):
        part = rows[first : first + QUERIES_AT_ONCE], places[first : first + QUERIES_AT_ONCE]
        positions = ends[part][:, None] + np.arange(-(query_tokens or m), 0)
        tokens = chunks.tokens[np.maximum(positions, 0) // m, positions % m]
        inside = positions >= (sequences * length)[part[0], None]
        queries = [row[is_inside].tolist() for row, is_inside in zip(tokens, inside, strict=True)]
        ids[part], scores[part] = search.nearest(queries, k, OtherDocuments(splits.database, own[part[0]]))
        advance(len(positions))
    return WindowTable(sequences, ids, step, scores)
