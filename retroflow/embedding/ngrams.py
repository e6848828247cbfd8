"""Hashes of all word and character n-grams of many texts at once, by numpy over their bytes.

The hash of an n-gram is a polynomial in its bytes modulo 2^64. With P[i] the sum of byte[j] x BASE^j over j < i, the
hash of bytes [s, e) is (P[e] - P[s]) x BASE^-s: one subtraction and one product for any length, without a loop.
"""

import numpy as np
from numpy.typing import NDArray

Uint64Array = NDArray[np.uint64]
Int64Array = NDArray[np.int64]

# Odd, so that it has an inverse modulo 2^64; otherwise arbitrary.
BASE = 0x9E3779B97F4A7C15
INVERSE_BASE = pow(BASE, -1, 1 << 64)
# Bytes used of one text; chunks have a few hundred bytes, and a 100 MB text would need 5 GB of hashes.
MOST_BYTES = 1 << 18

SPACE, WORD, PUNCTUATION = 0, 1, 2


def _byte_classes() -> NDArray[np.uint8]:
    """Return the class of each byte: letters, digits, underscore and non-ASCII are words; controls are space."""
    classes = np.full(256, PUNCTUATION, dtype=np.uint8)
    classes[:33] = SPACE
    classes[127] = SPACE
    for byte in range(33, 256):
        if byte >= 128 or chr(byte).isalnum() or byte == ord("_"):
            classes[byte] = WORD
    return classes


def _lower_case() -> NDArray[np.uint8]:
    return np.frombuffer(bytes(range(256)).lower(), dtype=np.uint8)


class NgramHasher:
    """Terms of texts as 64-bit hashes.

    A word is a run of letters, digits, underscores and non-ASCII bytes, or a single punctuation mark; ASCII case is
    folded, as the uncased BERT does. Terms are runs of 1 to `word_ngrams` words and of `character_ngram` bytes.
    """

    def __init__(self, *, word_ngrams: int, character_ngram: int, seed: int) -> None:
        self._word_ngrams = word_ngrams
        self._character_ngram = character_ngram
        self._seed = np.uint64(seed)
        self._classes = _byte_classes()
        self._lower = _lower_case()

    def hash_terms(self, texts: list[str]) -> tuple[Int64Array, Uint64Array]:
        """Hash all terms; return (rows int64 [terms], hashes uint64 [terms]), one entry per occurrence."""
        encoded = [text[:MOST_BYTES].encode("utf-8", "surrogatepass")[:MOST_BYTES] for text in texts]
        bytes_ = self._lower[np.frombuffer(b"\n".join(encoded) + b"\n", dtype=np.uint8)]
        lengths = np.array([len(piece) + 1 for piece in encoded])
        rows = np.repeat(np.arange(len(texts)), lengths)
        powers = _powers(BASE, len(bytes_))
        prefix = np.zeros(len(bytes_) + 1, dtype=np.uint64)
        # + 1: a zero byte must count, or "a" and "a\0" would have the same hash.
        np.cumsum((bytes_.astype(np.uint64) + np.uint64(1)) * powers, out=prefix[1:])
        inverses = _powers(INVERSE_BASE, len(bytes_))

        word_starts, word_ends = self._words(bytes_)
        words = _mix((prefix[word_ends] - prefix[word_starts]) * inverses[word_starts] + self._seed)
        found_rows, found_hashes = [], []
        run = words
        for size in range(1, self._word_ngrams + 1):
            starts, ends = word_starts[: len(run)], word_starts[size - 1 :]
            inside = rows[starts] == rows[ends]
            found_rows.append(rows[starts][inside])
            found_hashes.append(_mix(run + np.uint64(size))[inside])
            run = _mix(run[:-1] * np.uint64(3) + words[size:]) if len(run) > 1 else run[:0]
        if self._character_ngram:
            last_starts = len(bytes_) - self._character_ngram
            starts = np.arange(max(0, last_starts))
            starts = starts[rows[starts] == rows[starts + self._character_ngram]]
            pieces = (prefix[starts + self._character_ngram] - prefix[starts]) * inverses[starts]
            found_rows.append(rows[starts])
            found_hashes.append(_mix(_mix(pieces + self._seed)))
        return np.concatenate(found_rows), np.concatenate(found_hashes)

    def _words(self, bytes_: NDArray[np.uint8]) -> tuple[Int64Array, Int64Array]:
        """Return the first byte of each word and the byte after its last; bytes_ ends with a space."""
        classes = self._classes[bytes_]
        before = np.concatenate([[SPACE], classes[:-1]])
        behind = np.concatenate([classes[1:], [SPACE]])
        starts = (classes == PUNCTUATION) | ((classes == WORD) & (before != WORD))
        lasts = (classes == PUNCTUATION) | ((classes == WORD) & (behind != WORD))
        return np.flatnonzero(starts), np.flatnonzero(lasts) + 1


def _powers(base: int, count: int) -> Uint64Array:
    """base^0 .. base^(count - 1) modulo 2^64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def _mix(hashes: Uint64Array) -> Uint64Array:
    """The finaliser of splitmix64: every input bit moves every output bit."""
    mixed = hashes + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
