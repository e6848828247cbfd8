"""Runs of tokens that evaluated chunks share with any text of a database, whether it was retrieved or not.

A retriever can miss text that was copied, so comparison with the nearest chunks alone does not find every leak. Here
every run of at least `least` tokens is found: by 64-bit hashes of all windows of that many tokens, on both sides,
lengthened token by token. Two different windows have the same hash with a probability of about 2^-64.

Shapes: c evaluated chunks, m tokens of a chunk, w tokens around one, T tokens of a part of the database.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from retroflow.protocols import Int64Array
from retroflow.store.chunk_store import ChunkSource

CHUNKS_AT_ONCE = 1 << 14
"""Chunks of the database that are compared at one time."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_FILTER_BITS = 24

Hashes = NDArray[np.uint64]


def least_leak(chunk_length: int) -> int:
    """Return the shortest run that is a leak, an eighth of a chunk: 8 of 64 tokens (Borgeaud et al. 2022, 4.4)."""
    return -(-chunk_length // 8)


def longest_runs_anywhere(
    chunks: ChunkSource,
    rows: Int64Array,
    database: ChunkSource,
    *,
    least: int,
    excluded: Int64Array | None = None,
    advance: Callable[[int], None] = lambda chunks: None,
) -> Int64Array:
    """Return the longest run of tokens that each chunk shares with a document of the database.

    A run may cross chunks on both sides: it counts for every evaluated chunk in which at least one of its tokens
    lies, with up to `least` - 1 tokens before the chunk and after it. So a copied passage is found wherever it begins.

    Args:
        chunks: the evaluated split.
        rows: int64 [c], its chunks to look at.
        database: by the same tokenizer.
        least: shorter runs are not looked for.
        excluded: int64 [c, e], documents of the database that a chunk is never shown; None for that with the number of
            its own document, another version of it.
        advance: called with the number of finished chunks of the database.

    Returns:
        int64 [c], at most m; 0 where no run has `least` tokens.
    """
    m = chunks.chunk_length
    longest = np.zeros(len(rows), dtype=np.int64)
    values, ends = _around(chunks, rows, least)  # [c, w]
    width = values.shape[1]
    owner = np.repeat(np.arange(len(rows)), width)
    queries = _Windows(values.ravel(), ends.ravel(), np.arange(values.size)).first(least)
    queries = queries.part(np.argsort(queries.hashes))
    seen = np.zeros(1 << _FILTER_BITS, dtype=bool)
    seen[_key(queries.hashes)] = True
    excluded = np.asarray(chunks.document_ids[rows])[:, None] if excluded is None else excluded
    rows_without = _places_by_value(excluded)
    for tokens, left, documents, num_chunks in _documents_text(database):
        found = _Windows(hashed(tokens), left, np.arange(len(tokens))).first(least)
        found = found.part(np.flatnonzero(seen[_key(found.hashes)]))
        of_found = documents[found.places]
        is_excluded = np.isin(of_found, list(rows_without))
        of_others = found.part(~is_excluded)
        _lengthen(longest, owner, queries.of(of_others), of_others)
        for document in np.unique(of_found[is_excluded]).tolist():
            of_document = found.part(of_found == document)
            own = queries.of(of_document)
            own = own.part(~np.isin(owner[own.places], rows_without[document]))
            _lengthen(longest, owner, own, of_document)
        advance(num_chunks)
    return np.minimum(longest, m)


def _places_by_value(values: Int64Array) -> dict[int, Int64Array]:
    """Return for each value in [c, e] the rows that have it."""
    rows, flat = np.repeat(np.arange(len(values)), values.shape[1]), values.ravel()
    order = np.argsort(flat, kind="stable")
    distinct, first = np.unique(flat[order], return_index=True)
    return dict(zip(distinct.tolist(), np.split(rows[order], first[1:]), strict=True)) if len(flat) else {}


def _lengthen(longest: Int64Array, owner: Int64Array, own: "_Windows", found: "_Windows") -> None:
    """Enter the longest runs that windows share with those of a database, from the windows' length on, into [c]."""
    own, found = _shared(own, found)
    while len(own.places):
        np.maximum.at(longest, owner[own.places], own.length)
        own, found = _shared(own.longer(), found.longer())


class _Windows:
    """Windows of equal length in a text, with their hashes.

    Args:
        values: uint64 [T], a random number for each token.
        left: int64 [T], tokens from each place to the end of its text, itself included.
        places: int64 [p], where the windows begin.
        hashes: uint64 [p].
        length: tokens of a window.
    """

    def __init__(
        self, values: Hashes, left: Int64Array, places: Int64Array, hashes: Hashes | None = None, length: int = 0
    ) -> None:
        self._values, self._left = values, left
        self.places, self.length = places, length
        self.hashes = np.zeros(len(places), np.uint64) if hashes is None else hashes

    def part(self, which: NDArray[np.int64] | NDArray[np.bool_]) -> "_Windows":
        return _Windows(self._values, self._left, self.places[which], self.hashes[which], self.length)

    def of(self, other: "_Windows") -> "_Windows":
        """Return the windows, ascending by hash, that another text has, too."""
        return self.part(_places_of(np.unique(other.hashes), self.hashes))

    def longer(self) -> "_Windows":
        """Return the windows with one token more, without those that the text is too short for."""
        kept = self.part(self._left[self.places] > self.length)
        factor = np.uint64(pow(int(_MULTIPLIER), self.length, 1 << 64))
        kept.hashes = kept.hashes + kept._values[kept.places + self.length] * factor  # modulo 2^64
        kept.length += 1
        return kept

    def first(self, length: int) -> "_Windows":
        """Return the windows of a length."""
        windows = self
        while windows.length < length:
            windows = windows.longer()
        return windows


def _shared(one: _Windows, other: _Windows) -> tuple[_Windows, _Windows]:
    """Return the windows of each that the other has, too."""
    common = np.intersect1d(one.hashes, other.hashes)
    return one.part(_is_in(one.hashes, common)), other.part(_is_in(other.hashes, common))


def _is_in(hashes: Hashes, common: Hashes) -> NDArray[np.bool_]:
    if not len(common):
        return np.zeros(len(hashes), bool)
    places = np.minimum(np.searchsorted(common, hashes), len(common) - 1)
    return np.asarray(common[places] == hashes)


def _places_of(wanted: Hashes, hashes: Hashes) -> Int64Array:
    """Return every place in ascending hashes that holds one of `wanted`, each of them once."""
    first, stop = np.searchsorted(hashes, wanted), np.searchsorted(hashes, wanted, side="right")
    counts = stop - first
    before = np.cumsum(counts) - counts
    return np.asarray(np.arange(int(counts.sum())) + np.repeat(first - before, counts), dtype=np.int64)


def _key(hashes: Hashes) -> Hashes:
    return hashes >> np.uint64(64 - _FILTER_BITS)


def hashed(tokens: NDArray[np.integer]) -> Hashes:
    """Return uint64, a number for each token as if it were random. Source: Steele et al. 2014, SplitMix64."""
    mixed = (tokens.astype(np.uint64) + np.uint64(1)) * _MULTIPLIER
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def window_hashes(values: Hashes, length: int) -> Hashes:
    """Return the hashes uint64 of all windows of some length in values uint64 [T]."""
    left = np.arange(len(values), 0, -1)
    return _Windows(values, left, np.arange(len(values))).first(length).hashes


def _around(chunks: ChunkSource, rows: Int64Array, least: int) -> tuple[Hashes, Int64Array]:
    """Return the values uint64 [c, w] of chunks with `least` - 1 tokens before and after, and tokens left [c, w].

    Where a document begins or ends there is nothing: 0 tokens are left.
    """
    m, extra = chunks.chunk_length, least - 1
    reach = -(-extra // m)  # chunks before and after
    near = rows[:, None] + np.arange(-reach, reach + 1)
    there = np.clip(near, 0, len(chunks) - 1)
    same = (near == there) & (chunks.document_ids[there] == chunks.document_ids[rows][:, None])
    is_text = (np.arange(m) < chunks.lengths[there].astype(np.int64)[..., None]) & same[..., None]
    shape = (len(rows), near.shape[1] * m)
    tokens, real = chunks.tokens[there].reshape(shape), is_text.reshape(shape)
    kept = slice(reach * m - extra, (reach + 1) * m + extra)
    return hashed(tokens[:, kept]), _left(real[:, kept])


def _left(real: NDArray[np.bool_]) -> Int64Array:
    """Return the length of the run of True from each place on, along the last axis."""
    width = real.shape[-1]
    places = np.arange(width)
    ends = np.where(real, width, places)  # the next False, from the right
    ends = np.minimum.accumulate(ends[..., ::-1], axis=-1)[..., ::-1]
    return np.asarray(ends - places, dtype=np.int64)


def _documents_text(
    database: ChunkSource,
) -> Iterator[tuple[NDArray[np.integer], Int64Array, Int64Array, int]]:
    """Yield the tokens of the database [T] in parts, what is left of each document, the documents, and the chunks.

    A part has one chunk of the next, so that no run is cut off at its end.
    """
    for start in range(0, len(database), CHUNKS_AT_ONCE):
        stop = min(start + CHUNKS_AT_ONCE, len(database))
        rows = np.arange(start, min(stop + 1, len(database)))
        lengths = database.lengths[rows].astype(np.int64)
        tokens = np.asarray(database.tokens[rows])[np.arange(database.chunk_length) < lengths[:, None]]
        documents = np.repeat(np.asarray(database.document_ids[rows]), lengths)
        is_last = np.ones(len(tokens), dtype=bool)
        is_last[:-1] = documents[1:] != documents[:-1]
        last = np.flatnonzero(is_last)
        left = last[np.searchsorted(last, np.arange(len(tokens)))] + 1 - np.arange(len(tokens))
        yield tokens, left, documents, stop - start
        database.release()
