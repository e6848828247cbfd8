"""Lookups with text that is in no table: what generation writes, and windows of a sequence between chunk borders.

A query takes the path that the keys took: its tokens are decoded to text by the same tokenizer. If the retriever reads
vectors, the text is embedded by the same embedder, and rounded to float16.

Shapes: q queries, k neighbours, S sequences of l chunks, m tokens of a chunk, s tokens between two lookups, W windows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

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


class Searched(Protocol):
    """A retriever, as far as it is asked here."""

    def search(self, queries: Queries, k: int, /) -> Neighbours:
        """Find k neighbours of every query."""
        ...


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

    def nearest(self, queries: Sequence[Sequence[int]], k: int) -> Neighbours:
        """Find the neighbours of windows, [q, k].

        End-of-text tokens are not text: a window without other tokens finds nothing, -1.
        """
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full(ids.shape, -np.inf, dtype=np.float32)
        end_of_text = self.tokenizer.end_of_text
        texts = self.tokenizer.decode_batch([[token for token in query if token != end_of_text] for query in queries])
        asked = [row for row, text in enumerate(texts) if text]
        if asked:
            ids[asked], scores[asked] = self._search([texts[row] for row in asked], k)
        return Neighbours(ids, scores)

    def _search(self, texts: list[str], k: int) -> Neighbours:
        def vectors() -> Float32Array:
            assert self.embedder is not None
            # keys are stored as float16, so a query is rounded, too
            return self.embedder.embed(texts).astype(np.float16).astype(np.float32)

        return self.retriever.search(LazyQueries(len(texts), vectors=vectors, texts=lambda: texts), k)


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


def nearest_chunks(
    search: LiveSearch, chunks: ChunkSource, rows: Int64Array, k: int, *, advance: Callable[[int], None]
) -> Int64Array:
    """Find the neighbours of chunks.

    Args:
        search: the database.
        chunks: their split.
        rows: int64 [c].
        k: neighbours of a chunk.
        advance: called with the number of finished chunks; may raise to stop.

    Returns:
        int64 [c, k], rows of the database, -1 = none.
    """
    ids = np.full((len(rows), k), -1, dtype=np.int64)
    for first in range(0, len(rows), QUERIES_AT_ONCE):
        part = rows[first : first + QUERIES_AT_ONCE]
        lengths = np.asarray(chunks.lengths[part]).tolist()
        texts = [row[:length].tolist() for row, length in zip(chunks.tokens[part], lengths, strict=True)]
        ids[first : first + len(part)] = search.nearest(texts, k).ids
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
    """Find the neighbours of every window of validation sequences.

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
    # A shorter last sequence has fewer windows.
    rows, places = np.nonzero(ends <= len(chunks) * m)
    for first in range(0, len(rows), QUERIES_AT_ONCE):
        part = rows[first : first + QUERIES_AT_ONCE], places[first : first + QUERIES_AT_ONCE]
        positions = ends[part][:, None] + np.arange(-(query_tokens or m), 0)
        tokens = chunks.tokens[np.maximum(positions, 0) // m, positions % m]
        inside = positions >= (sequences * length)[part[0], None]
        queries = [row[own].tolist() for row, own in zip(tokens, inside, strict=True)]
        ids[part], scores[part] = search.nearest(queries, k)
        advance(len(positions))
    return WindowTable(sequences, ids, step, scores)
