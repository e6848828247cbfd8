"""Embeddings without weights: hashed n-grams, weighted by TF-IDF, randomly projected; numpy alone.

For tests, for machines where BERT is too slow, and as the baseline that a learned embedder has to beat. Two texts are
near if they have rare words, word pairs and character n-grams in common; meaning is ignored.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from retroflow.embedding.lexical_terms import check_terms
from retroflow.embedding.ngrams import MOST_BYTES, NgramHasher
from retroflow.errors import DamagedDataError, UsageError
from retroflow.options import Seed, checked_options
from retroflow.protocols import Float32Array

# Texts whose n-grams are in memory at once: about 50 MB with chunks of 300 bytes, 150 MB with long ones.
BLOCK_TEXTS = 1024
BLOCK_CHARACTERS = 1 << 20
# Columns to which each bucket is added, with random signs; with one, two rare words could collide completely.
COLUMNS_PER_BUCKET = 4
OPTIONS_FILE = "lexical.json"
FREQUENCIES_FILE = "document_frequencies.npy"


@checked_options("embedder")
class LexicalEmbedder:
    """Hashed word and character n-grams, TF-IDF weighted, projected to `dimension`, of length 1.

    A term's weight is (1 + ln count in the text) x (1 + ln((1 + texts) / (1 + texts that have it))); before `fit` every
    term is equally rare. There are `buckets` counters for all terms, so memory does not grow with the corpus.

    Args:
        dimension: width of the vectors.
        word_ngrams: longest run of words that is a term; 0 for none.
        character_ngram: length in bytes of the character n-grams; 0 for none.
        buckets: number of counters for document frequencies.
        seed: of the hash and the projection.

    Raises:
        UsageError: an option is out of range.
    """

    def __init__(
        self,
        *,
        dimension: Annotated[int, Ge(1), Le(65_536)] = 256,
        word_ngrams: Annotated[int, Ge(0), Le(64)] = 2,
        character_ngram: Annotated[int, Ge(0), Le(256)] = 5,
        buckets: Annotated[int, Ge(1), Le(16_777_216)] = 262144,
        seed: Seed = 0,
    ) -> None:
        self._options = {
            "dimension": dimension,
            "word_ngrams": word_ngrams,
            "character_ngram": character_ngram,
            "buckets": buckets,
            "seed": seed,
        }
        check_terms(self._options)
        self.dimension = dimension
        self._hasher = NgramHasher(word_ngrams=word_ngrams, character_ngram=character_ngram, seed=seed)
        self._buckets = buckets
        self._texts_with_bucket = np.zeros(buckets, dtype=np.int64)
        self._num_texts = 0
        generator = np.random.default_rng(seed)
        size = (COLUMNS_PER_BUCKET, buckets)
        self._rarity = self._rarities()
        self._columns = generator.integers(dimension, size=size, dtype=np.int32)
        self._signs = generator.integers(2, size=size, dtype=np.int8) * 2 - 1

    def fit(self, texts: Iterable[str]) -> None:
        """Count in how many texts each bucket occurs, in one pass."""
        self._texts_with_bucket[:] = 0
        self._num_texts = 0
        for block in _blocks(texts):
            _, buckets, _ = self._terms(block)
            self._texts_with_bucket += np.bincount(buckets, minlength=self._buckets)
            self._num_texts += len(block)
        self._rarity = self._rarities()

    def embed(self, texts: list[str]) -> Float32Array:
        """Embed texts; return float32 [len(texts), dimension], every row of length 1.

        A text without a term (empty, or shorter than an n-gram) gets the first unit vector. Zero would be nearer to
        unrelated texts than they are to each other.

        Raises:
            UsageError: a text is not a string.
        """
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        rarity, start = self._rarity, 0
        for block in _blocks(texts):
            rows, buckets, counts = self._terms(block)
            weights = (1.0 + np.log(counts)) * rarity[buckets]
            places = rows * self.dimension + self._columns[:, buckets]
            sums = np.bincount(
                places.ravel(), (weights * self._signs[:, buckets]).ravel(), minlength=len(block) * self.dimension
            ).reshape(len(block), self.dimension)
            lengths = np.linalg.norm(sums, axis=1, keepdims=True)
            sums[lengths[:, 0] == 0.0, 0] = 1.0
            vectors[start : start + len(block)] = sums / np.where(lengths == 0.0, 1.0, lengths)
            start += len(block)
        return vectors

    def save(self, folder: Path) -> None:
        """Write the document frequencies and the options of the embedder."""
        file = io.BytesIO()
        np.save(file, self._texts_with_bucket)
        (folder / FREQUENCIES_FILE).write_bytes(file.getvalue())
        state = {
            "options": self._options,
            "num_texts": self._num_texts,
            "sha256": hashlib.sha256(file.getvalue()).hexdigest(),
        }
        (folder / OPTIONS_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            DamagedDataError: a file is missing or changed.
            UsageError: it was written by an embedder with other options.
        """
        state_path, counts_path = folder / OPTIONS_FILE, folder / FREQUENCIES_FILE
        try:
            state = json.loads(state_path.read_text(encoding="utf-8"))
            options, num_texts, expected = dict(state["options"]), int(state["num_texts"]), str(state["sha256"])
            content = counts_path.read_bytes()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedDataError(
                f"{folder}: not the state of a lexical embedder ({error}). Prepare it again."
            ) from error
        if hashlib.sha256(content).hexdigest() != expected:
            raise DamagedDataError(f"{counts_path}: its SHA-256 is not the one in {OPTIONS_FILE}. Prepare it again.")
        if options != self._options:
            raise UsageError(
                f"{state_path}: written by a lexical embedder with {options}, this one has {self._options}. Use the "
                "same options, or prepare again."
            )
        self._texts_with_bucket = np.load(io.BytesIO(content), allow_pickle=False)
        self._num_texts = num_texts
        self._rarity = self._rarities()

    def fingerprint(self) -> dict[str, object]:
        """Return the options and the version of the arithmetic; the corpus determines the document frequencies."""
        return {"embedder": "lexical", "arithmetic": 1, **self._options}

    def _rarities(self) -> NDArray[np.float64]:
        """Return the weight of each bucket by the texts that have it, float64 [buckets]."""
        return 1.0 + np.log((1.0 + self._num_texts) / (1.0 + self._texts_with_bucket))

    def _terms(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return distinct (row, bucket) pairs of the texts and their counts, each int64 [terms]."""
        rows, hashes = self._hasher.hash_terms(texts)
        buckets = (hashes % np.uint64(self._buckets)).astype(np.int64)
        pairs, counts = np.unique(rows * self._buckets + buckets, return_counts=True)
        return pairs // self._buckets, pairs % self._buckets, counts


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    size = 0
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"embed: a text is of type {type(text).__name__} ({text!r:.40}); give str.")
        block.append(text)
        size += min(len(text), MOST_BYTES)
        if len(block) == BLOCK_TEXTS or size >= BLOCK_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block
