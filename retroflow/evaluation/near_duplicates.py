"""Documents of one corpus that are nearly the same as documents of another, by MinHash; the only file with datasketch.

Documents are compared as words: letters and digits in lower case, so that another edition with other line breaks,
quotation marks and italics is the same text. Two documents are near duplicates if their sets of 13-grams of words have
a Jaccard similarity of 0.8 or more (Borgeaud et al. 2022, section 2.1: such documents were removed from the training
text). One edited word changes 13 of them, so a copy with edits all over has less: with a share e of its words edited
here and there, about s / (2 - s), s = (1 - e)^13 (Ondov et al. 2016, "Mash"). Edited copies, and documents that are
partly the same, are found by their 5-grams: from a similarity of 0.3 on, e = 14 %.

MinHash of the 5-grams only proposes pairs; every similarity that is reported was computed from the whole sets. A pair
of similarity j is proposed with a probability of 1 - (1 - j^2)^64: 0.998 for 0.3, and 1 - 10^-28 for 0.8. The seeds are
fixed, so the same documents give the same pairs.

Shapes: t tokens or w words of a document, p shingles.
"""

import importlib.util
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.errors import MissingExtraError
from retroflow.evaluation.shared_runs import Hashes, hashed, window_hashes
from retroflow.store.chunk_store import ChunkSource

NEAR, NEAR_WORDS = 0.8, 13
"""Least Jaccard similarity of near duplicates, and words of a shingle."""

EDITED, EDITED_WORDS = 0.3, 5
"""The same of edited copies."""

_MOST_EDITED = 20
"""Edited copies that are kept of a document: pages made from one template can be very many."""

_BANDS, _ROWS = 64, 2
_SEED = 1

_ALONE = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(f"[{_ALONE}]|[^\\W_{_ALONE}]+")
"""Letters and digits; in scripts without spaces between words each letter is a word."""

Words = Callable[[NDArray[np.integer]], Hashes]
"""Returns the words of a document's tokens [t] as numbers uint64 [w]."""


def words_of(tokenizer: Tokenizer) -> Words:
    """Return a function from tokens to words; a text without letters and digits has its tokens in place of words."""

    def words(tokens: NDArray[np.integer]) -> Hashes:
        text = unicodedata.normalize("NFKC", tokenizer.decode(tokens)).casefold()
        found = np.fromiter(map(_number_of, _WORD.findall(text)), np.uint64)
        return found if len(found) else hashed(tokens)

    return words


@lru_cache(maxsize=1 << 20)
def _number_of(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(errors="replace"), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Pair:
    """Two similar documents.

    Attributes:
        document: of the evaluated text.
        other: of the other corpus.
        similarity: of Jaccard, of the 13-grams of words, 0 to 1.
        edited_similarity: the same of the 5-grams.
    """

    document: str
    other: str
    similarity: float
    edited_similarity: float

    @property
    def is_near(self) -> bool:
        """Whether they are near duplicates, and not only edited copies."""
        return self.similarity >= NEAR


@dataclass(frozen=True)
class NearDuplicates:
    """What was found between an evaluated text and other corpora.

    Attributes:
        documents: of the evaluated text.
        pairs: name of the corpus -> similar documents; of each evaluated one the most similar first.
        training: the same of the training text in the database, if that is another text; else None.
    """

    documents: int
    pairs: Mapping[str, list[Pair]]
    training: "NearDuplicates | None" = None

    @property
    def statement(self) -> str:
        """The counts in one sentence."""
        similar = f"Near duplicates ({NEAR_WORDS}-gram Jaccard similarity of {NEAR} or more)"
        training = "" if self.training is None else f"; of the {self.training._counted('training')}"
        return f"{similar} of the {self._counted('evaluated')}{training}."

    def _counted(self, what: str) -> str:
        counts = [f"{near} in the {name} ({edited} more are edited copies)" for name, near, edited in self._counts()]
        return f"{self.documents:,} {what} documents: {', '.join(counts)}"

    def _counts(self) -> Iterator[tuple[str, int, int]]:
        """Yield each corpus with the number of evaluated documents that have near duplicates, or edited copies, in it.

        A document that has both counts as the former.
        """
        for name, pairs in self.pairs.items():
            near = {pair.document for pair in pairs if pair.is_near}
            yield name, len(near), len({pair.document for pair in pairs} - near)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; the most similar pairs come first."""
        found = {}
        for name, near, edited in self._counts():
            listed = sorted(self.pairs[name], key=lambda pair: (-pair.similarity, -pair.edited_similarity))
            found[name] = {
                "near": near,
                "edited": edited,
                "pairs": [
                    [pair.document, pair.other, round(pair.similarity, 4), round(pair.edited_similarity, 4)]
                    for pair in listed
                ],
            }
        thresholds = {
            "near": NEAR,
            "near_words": NEAR_WORDS,
            "edited": EDITED,
            "edited_words": EDITED_WORDS,
        }
        values = {"documents": self.documents, "thresholds": thresholds, "with": found}
        training = {} if self.training is None else {"training": self.training.to_json()}
        return {"statement": self.statement, **values, **training}


class _Shingles(NamedTuple):
    """The distinct 13-grams and 5-grams of a document, uint64 [p], ascending."""

    near: Hashes
    edited: Hashes


def similar_documents(
    evaluated: ChunkSource,
    rows: NDArray[np.int64] | None,
    other: ChunkSource,
    *,
    words: Words = hashed,
    advance: Callable[[int], None] = lambda chunks: None,
) -> tuple[int, list[Pair]]:
    """Find the evaluated documents that have a near duplicate or an edited copy in another corpus.

    Documents of fewer words than a shingle are compared as one shingle.

    Args:
        evaluated: the split.
        rows: int64, chunks whose documents are looked at; None for all.
        other: by the same tokenizer.
        words: of a document; by default its tokens.
        advance: called with the number of finished chunks of both, in turn.

    Returns:
        The number of evaluated documents, and pairs: all near duplicates, and of each document the most similar of its
        edited copies, 20 at most.

    Raises:
        MissingExtraError: datasketch is not installed.
    """
    if importlib.util.find_spec("datasketch") is None:
        raise MissingExtraError('near duplicates: need datasketch. Install it with: pip install "retroflow[eval]"')
    from datasketch import MinHashLSH

    wanted = None if rows is None else set(np.unique(np.asarray(evaluated.document_ids[rows])).tolist())
    index = MinHashLSH(num_perm=_BANDS * _ROWS, params=(_BANDS, _ROWS))
    shingles: dict[int, _Shingles] = {}
    blank = _blank()
    for document, tokens, chunks in _documents(evaluated):
        if wanted is None or document in wanted:
            shingles[document] = _shingles(words(tokens))
            index.insert(document, _min_hash(blank, shingles[document].edited))
        advance(chunks)
    found: dict[int, list[Pair]] = {}
    for document, tokens, chunks in _documents(other):
        of_other = _shingles(words(tokens))
        for own in sorted(index.query(_min_hash(blank, of_other.edited))):
            if own == document:
                continue  # another version of it, which its chunks are never shown
            of_own = shingles[own]
            similarities = _jaccard(of_own.near, of_other.near), _jaccard(of_own.edited, of_other.edited)
            if similarities[0] >= NEAR or similarities[1] >= EDITED:
                pair = Pair(evaluated.document(own).id, other.document(document).id, *similarities)
                found.setdefault(own, []).append(pair)
        advance(chunks)
    return len(shingles), [pair for _, pairs in sorted(found.items()) for pair in _kept(pairs)]


def _kept(pairs: list[Pair]) -> list[Pair]:
    pairs = sorted(pairs, key=lambda pair: (-pair.similarity, -pair.edited_similarity))
    near = sum(pair.is_near for pair in pairs)
    return pairs[: near + _MOST_EDITED]


def _documents(chunks: ChunkSource) -> Iterator[tuple[int, NDArray[np.integer], int]]:
    """Yield the number of each document, its tokens [t], and its number of chunks."""
    numbers = np.asarray(chunks.document_ids[np.arange(len(chunks))])
    starts = np.flatnonzero(np.concatenate([[True], numbers[1:] != numbers[:-1]]))
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(chunks)], strict=True):
        rows = np.arange(start, stop)
        lengths = np.asarray(chunks.lengths[rows], dtype=np.int64)
        tokens = np.asarray(chunks.tokens[rows])[np.arange(chunks.chunk_length) < lengths[:, None]]
        yield int(numbers[start]), tokens, stop - start
    chunks.release()


def _shingles(words: Hashes) -> _Shingles:
    return _Shingles(*(np.unique(window_hashes(words, min(n, len(words)))) for n in (NEAR_WORDS, EDITED_WORDS)))


def _blank() -> Any:
    from datasketch import MinHash

    return MinHash(num_perm=_BANDS * _ROWS, seed=_SEED, hashfunc=int)


def _min_hash(blank: Any, shingles: Hashes) -> Any:
    made = blank.copy()
    made.update_batch((shingles >> np.uint64(32)).tolist())
    return made


def _jaccard(one: Hashes, other: Hashes) -> float:
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)
