"""Neighbours that fit the topic and not the text: those of another document of the same topic.

Random neighbours only show that a model ignores unrelated text. What another document's neighbours gain comes from the
topic, its words and its style, and not from the passage that was found.

Documents are vectors: the mean of their chunks' embeddings, or, where nothing was embedded (BM25), tf-idf weights of
their tokens, hashed with signs to 512 features. k-means groups them, with 8 documents of a topic on average. In every
topic one random cycle gives each document a partner; a document alone in its topic takes the nearest of the nearest
topic. Chunk p of a document takes what was found for chunk p of its partner, or, if that is what was found for itself,
too, the next chunk's; so a document never has its own neighbours, unless its partner has no others. Where lookups are
more frequent than chunks, the partner's window at the same place is looked up.

Shapes: D documents, d features, N chunks, m tokens of a chunk, U chunks or windows, k neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retroflow.data.windows import WindowTable
from retroflow.protocols import Float32Array, Int64Array, VectorSource
from retroflow.store.chunk_store import ChunkSource

DOCUMENTS_OF_A_TOPIC, MOST_TOPICS = 8, 256

LEXICAL_FEATURES = 512

_ITERATIONS = 20

_ROWS, _WINDOWS = 16_384, 256
"""Embeddings that are read at once, and windows that are looked up."""


@dataclass(frozen=True)
class Topics:
    """Documents as vectors.

    Attributes:
        documents: int64 [D], ascending.
        vectors: float32 [D, d], of length 1.
        seed: of the topics and the partners.
    """

    documents: Int64Array
    vectors: Float32Array
    seed: int

    def partners(self, documents: Int64Array) -> Int64Array:
        """Return for each of some documents [e], ascending, the place of its partner among them; -1 if it is alone."""
        if len(documents) < 2:
            return np.full(len(documents), -1, dtype=np.int64)
        vectors = self.vectors[np.searchsorted(self.documents, documents)]
        generator = np.random.default_rng([self.seed, len(documents)])
        clusters, centres = _clusters(vectors, generator)
        partners = np.empty(len(documents), dtype=np.int64)
        for cluster in np.unique(clusters):
            members = generator.permutation(np.flatnonzero(clusters == cluster))
            partners[members] = np.roll(members, 1)
        counts = np.bincount(clusters, minlength=len(centres))
        for alone in np.flatnonzero(partners == np.arange(len(documents))):
            nearness = np.where(counts > 0, centres @ centres[clusters[alone]], -np.inf)
            nearness[clusters[alone]] = -np.inf
            others = np.flatnonzero(clusters == nearness.argmax())
            partners[alone] = others[(vectors[others] @ vectors[alone]).argmax()]
        return partners


def number_of_topics(documents: int) -> int:
    """Return into how many topics so many documents are grouped."""
    return min(max(1, round(documents / DOCUMENTS_OF_A_TOPIC)), MOST_TOPICS)


def topics_of(chunks: ChunkSource, embeddings: VectorSource | None, *, seed: int) -> Topics:
    """Return the documents of a split as vectors.

    Args:
        chunks: N chunks.
        embeddings: [N, D] of the chunks; None if they have none.
        seed: of the topics and the partners.
    """
    documents, places = np.unique(np.asarray(chunks.document_ids[:]), return_inverse=True)
    if embeddings is None:
        vectors = _lexical(chunks, places, len(documents))
    else:
        vectors = np.zeros((len(documents), embeddings.shape[1]))
        for first in range(0, len(embeddings), _ROWS):
            block = embeddings[first : first + _ROWS]
            np.add.at(vectors, places[first : first + len(block)], block.astype(np.float64))
    return Topics(documents, _unit(vectors), seed)


def topic_matched(found: Int64Array, documents: Int64Array, topics: Topics) -> Int64Array:
    """Return for every chunk what was found for a chunk of another document of its topic.

    Args:
        found: int64 [N, k], -1 where there is none.
        documents: int64 [N], of the chunks.
        topics: of these documents, and maybe others.

    Returns:
        int64 [N, k]; -1 where there is only one document for which something was found.
    """
    found = np.asarray(found)
    matched = np.full_like(found, -1)
    is_found: NDArray[np.bool_] = np.asarray((found >= 0).any(axis=1))
    present = np.unique(documents[is_found])
    rows = np.flatnonzero(np.isin(documents, present))
    order = rows[np.argsort(documents[rows], kind="stable")]
    members = np.split(order, np.searchsorted(documents[order], present[1:]))
    for own, partner in zip(members, topics.partners(present), strict=True):
        if partner < 0:
            continue
        donors = members[partner][is_found[members[partner]]]
        for place, row in enumerate(own):
            rolled = np.roll(donors, -(place % len(donors)))
            shared = (np.isin(found[rolled], found[row]) & (found[rolled] >= 0)).sum(axis=1)
            matched[row] = found[rolled[shared.argmin()]]
    return matched


def topic_matched_windows(
    table: WindowTable,
    chunks: ChunkSource,
    topics: Topics,
    nearest: Callable[[list[list[int]], Int64Array], Int64Array],
    *,
    sequence_chunks: int,
) -> WindowTable:
    """Look up for every window one of the partner of its document: that of the last token.

    The window of the partner ends as many tokens after the beginning of its document, or begins anew where the partner
    is shorter. Windows of both have m tokens.

    Args:
        table: what was found, of which sequences and step are taken.
        chunks: the text.
        topics: of its documents.
        nearest: finds the neighbours int64 [q, k] of q windows of tokens, outside documents [q, e].
        sequence_chunks: chunks of a sequence.
    """
    m, ids = chunks.chunk_length, np.full_like(table.ids, -1)
    documents = np.asarray(chunks.document_ids[:])
    first, count = np.unique(documents, return_index=True, return_counts=True)[1:]
    last = np.asarray(chunks.lengths[:]).astype(np.int64)[first + count - 1]
    lengths = (count - 1) * m + last  # tokens of each document
    partners = topics.partners(topics.documents)
    ends = (table.sequences * sequence_chunks * m)[:, None] + np.arange(m, m + ids.shape[1] * table.step, table.step)
    rows, places = np.nonzero(ends <= len(chunks) * m)
    own = np.searchsorted(topics.documents, documents[(ends[rows, places] - 1) // m])
    is_paired = partners[own] >= 0
    rows, places, own = rows[is_paired], places[is_paired], own[is_paired]
    partner, after = partners[own], ends[rows, places] - first[own] * m
    near = np.minimum(table.sequences[rows, None] * sequence_chunks + np.arange(sequence_chunks + 1), len(chunks) - 1)
    excluded = np.column_stack([documents[near], topics.documents[partner]])  # the sequence's, and the partner
    stops = first[partner] * m + m + (after - m) % np.maximum(1, lengths[partner] - m + 1)
    for start in range(0, len(rows), _WINDOWS):
        part = slice(start, start + _WINDOWS)
        positions = stops[part, None] + np.arange(-m, 0)
        ids[rows[part], places[part]] = nearest(chunks.tokens[positions // m, positions % m].tolist(), excluded[part])
    return replace(table, ids=ids)


def _lexical(chunks: ChunkSource, places: Int64Array, count: int) -> NDArray[np.float64]:
    """Return tf-idf weights (1 + ln tf) ln(D / df) of documents, hashed to float64 [D, LEXICAL_FEATURES]."""
    real = np.arange(chunks.chunk_length) < np.asarray(chunks.lengths[:]).astype(np.int64)[:, None]
    terms = np.asarray(chunks.tokens[:]).astype(np.int64)[real]
    size = int(terms.max(initial=0)) + 1
    pairs, times = np.unique(np.repeat(places, real.sum(axis=1)) * size + terms, return_counts=True)
    of_document, term = np.divmod(pairs, size)
    idf = np.log(count / np.maximum(np.bincount(term, minlength=size), 1))
    hashing = np.random.default_rng(0)  # the same features for every seed
    feature, sign = hashing.integers(LEXICAL_FEATURES, size=size), hashing.choice([-1.0, 1.0], size=size)
    weights = (1.0 + np.log(times)) * idf[term] * sign[term]
    flat = np.bincount(of_document * LEXICAL_FEATURES + feature[term], weights, minlength=count * LEXICAL_FEATURES)
    return flat.reshape(count, LEXICAL_FEATURES).astype(np.float64)


def _clusters(vectors: Float32Array, generator: np.random.Generator) -> tuple[Int64Array, Float32Array]:
    """Group vectors [D, d] of length 1 by k-means with cosine; returns int64 [D], and the centres [C, d]."""
    count = number_of_topics(len(vectors))
    centres = vectors[generator.choice(len(vectors), count, replace=False)]
    nearest = np.zeros(len(vectors), dtype=np.int64)
    for _ in range(_ITERATIONS):
        before, nearest = nearest, (vectors @ centres.T).argmax(axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, vectors)
        centres = np.where(np.bincount(nearest, minlength=count)[:, None] > 0, _unit(sums), centres)
        if (before == nearest).all():
            break
    return nearest, centres


def _unit(vectors: NDArray[np.floating]) -> Float32Array:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
