"""Documents of one corpus that are nearly the same as documents of another, by MinHash; the only file with datasketch.

Two documents are near duplicates if their sets of 13-grams of tokens have a Jaccard similarity of 0.8 or more
(Borgeaud et al. 2022, section 2.1: such documents were removed from the training text). One edited token changes 13
of them, so a copy with edits all over has less: with a share e of its tokens edited here and there, about
s / (2 - s), s = (1 - e)^13 (Ondov et al. 2016, "Mash"). Pairs from 0.3 on, e = 5 % or a little more, are reported as
edited copies.

MinHash only proposes pairs; every similarity that is reported was computed from the whole sets. A pair of similarity j
is proposed with a probability of 1 - (1 - j^2)^64: 0.998 for 0.3, and 1 - 10^-28 for 0.8. The seeds are fixed, so the
same documents give the same pairs.

Shapes: p shingles of a document.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.errors import MissingExtraError
from retroflow.evaluation.shared_runs import hashed, window_hashes
from retroflow.store.chunk_store import ChunkSource

SHINGLE = 13
"""Tokens of a shingle."""

NEAR, EDITED = 0.8, 0.3
"""Least Jaccard similarity of near duplicates, and of edited copies."""

_BANDS, _ROWS = 64, 2
_SEED = 1
_SHOWN = 100

Shingles = NDArray[np.uint64]


@dataclass(frozen=True)
class Pair:
    """Two similar documents.

    Attributes:
        document: of the evaluated text.
        other: the most similar one of the other corpus.
        similarity: of Jaccard, from `EDITED` to 1.
    """

    document: str
    other: str
    similarity: float


@dataclass(frozen=True)
class NearDuplicates:
    """What was found between an evaluated text and other corpora.

    Attributes:
        documents: of the evaluated text.
        pairs: name of the corpus -> for each document with a similar one there, the most similar one.
    """

    documents: int
    pairs: Mapping[str, list[Pair]]

    @property
    def statement(self) -> str:
        """The counts in one sentence."""
        counts = []
        for name, pairs in self.pairs.items():
            near = sum(pair.similarity >= NEAR for pair in pairs)
            counts.append(f"{near} in the {name} ({len(pairs) - near} more are edited copies)")
        return (
            f"Near duplicates (13-gram Jaccard similarity of {NEAR} or more) of the {self.documents:,} evaluated "
            f"documents: {', '.join(counts)}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, of each corpus the most similar pairs."""
        found = {}
        for name, pairs in self.pairs.items():
            near = sum(pair.similarity >= NEAR for pair in pairs)
            listed = sorted(pairs, key=lambda pair: (-pair.similarity, pair.document))[:_SHOWN]
            found[name] = {
                "near": near,
                "edited": len(pairs) - near,
                "pairs": [[pair.document, pair.other, round(pair.similarity, 4)] for pair in listed],
            }
        thresholds = {"near": NEAR, "edited": EDITED, "shingle_tokens": SHINGLE}
        return {"statement": self.statement, "documents": self.documents, "thresholds": thresholds, "with": found}


def similar_documents(
    evaluated: ChunkSource,
    rows: NDArray[np.int64] | None,
    other: ChunkSource,
    *,
    advance: Callable[[int], None] = lambda chunks: None,
) -> tuple[int, list[Pair]]:
    """Find the evaluated documents that have a near duplicate or an edited copy in another corpus.

    Documents of fewer than 13 tokens are compared as one shingle.

    Args:
        evaluated: the split.
        rows: int64, chunks whose documents are looked at; None for all.
        other: by the same tokenizer.
        advance: called with the number of finished chunks of both, in turn.

    Returns:
        The number of evaluated documents, and pairs, one for each of them that has any.

    Raises:
        MissingExtraError: datasketch is not installed.
    """
    if importlib.util.find_spec("datasketch") is None:
        raise MissingExtraError('near duplicates: need datasketch. Install it with: pip install "retroflow[eval]"')
    from datasketch import MinHashLSH

    wanted = None if rows is None else set(np.unique(np.asarray(evaluated.document_ids[rows])).tolist())
    index = MinHashLSH(num_perm=_BANDS * _ROWS, params=(_BANDS, _ROWS))
    shingles: dict[int, Shingles] = {}
    blank = _blank()
    for document, found, chunks in _documents(evaluated):
        if wanted is None or document in wanted:
            shingles[document] = found
            index.insert(document, _min_hash(blank, found))
        advance(chunks)
    best: dict[int, tuple[float, int]] = {}
    for document, found, chunks in _documents(other):
        for candidate in sorted(index.query(_min_hash(blank, found))):
            if candidate == document:
                continue  # another version of it, which its chunks are never shown
            similarity = _jaccard(shingles[candidate], found)
            if similarity >= EDITED and similarity > best.get(candidate, (0.0, 0))[0]:
                best[candidate] = similarity, document
        advance(chunks)
    pairs = [
        Pair(evaluated.document(own).id, other.document(found).id, similarity)
        for own, (similarity, found) in sorted(best.items())
    ]
    return len(shingles), pairs


def _documents(chunks: ChunkSource) -> Iterator[tuple[int, Shingles, int]]:
    """Yield the number of each document, its shingles in ascending order, and its number of chunks."""
    numbers = np.asarray(chunks.document_ids[np.arange(len(chunks))])
    starts = np.flatnonzero(np.concatenate([[True], numbers[1:] != numbers[:-1]]))
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(chunks)], strict=True):
        rows = np.arange(start, stop)
        lengths = np.asarray(chunks.lengths[rows], dtype=np.int64)
        tokens = np.asarray(chunks.tokens[rows])[np.arange(chunks.chunk_length) < lengths[:, None]]
        yield int(numbers[start]), np.unique(window_hashes(hashed(tokens), min(SHINGLE, len(tokens)))), stop - start
    chunks.release()


def _blank() -> Any:
    from datasketch import MinHash

    return MinHash(num_perm=_BANDS * _ROWS, seed=_SEED, hashfunc=int)


def _min_hash(blank: Any, shingles: Shingles) -> Any:
    made = blank.copy()
    made.update_batch((shingles >> np.uint64(32)).tolist())
    return made


def _jaccard(one: Shingles, other: Shingles) -> float:
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)
