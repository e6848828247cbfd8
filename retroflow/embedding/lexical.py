"""Embeddings without weights: hashed token n-grams, TF-IDF weighted, randomly projected."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from retroflow.errors import DamagedDataError, RecipeError
from retroflow.protocols import Float32Array

WORD = re.compile(r"\w+|[^\w\s]")


class LexicalEmbedder:
    """Hashed word n-grams, TF-IDF weighted, projected to `dimension`; thin first version."""

    def __init__(self, *, dimension: int = 256, buckets: int = 1 << 18, seed: int = 0) -> None:
        self.dimension = dimension
        self._buckets = buckets
        self._seed = seed
        self._counts = np.zeros(buckets, dtype=np.int64)
        self._num_texts = 0

    def _terms(self, text: str) -> np.ndarray:
        words = WORD.findall(text)
        grams = words + [a + " " + b for a, b in zip(words, words[1:], strict=False)]
        return np.array([int.from_bytes(hashlib.blake2b(g.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") for g in grams], dtype=np.uint64)

    def fit(self, texts: Iterable[str]) -> None:
        """Count in how many texts each bucket occurs."""
        self._counts[:] = 0
        self._num_texts = 0
        for text in texts:
            self._counts[np.unique(self._terms(text) % np.uint64(self._buckets)).astype(np.int64)] += 1
            self._num_texts += 1

    def embed(self, texts: list[str]) -> Float32Array:
        """Embed texts; returns float32 [len(texts), dimension]."""
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise RecipeError(f"embed: texts[{row}] is a {type(text).__name__}, expected str")
            terms = self._terms(text)
            if not len(terms):
                continue
            buckets = (terms % np.uint64(self._buckets)).astype(np.int64)
            weight = np.log((1.0 + self._num_texts) / (1.0 + self._counts[buckets])) + 1.0
            column = ((terms >> np.uint64(20)) % np.uint64(self.dimension)).astype(np.int64)
            sign = 1.0 - 2.0 * ((terms >> np.uint64(60)) & np.uint64(1)).astype(np.float64)
            vectors[row] = np.bincount(column, weights=weight * sign, minlength=self.dimension)
            vectors[row] /= max(float(np.linalg.norm(vectors[row])), 1e-12)
        return vectors

    def save(self, folder: Path) -> None:
        """Write the document frequencies."""
        np.savez(folder / "document_frequencies.npz", counts=self._counts, num_texts=np.int64(self._num_texts))

    def load(self, folder: Path) -> None:
        """Read the document frequencies."""
        path = folder / "document_frequencies.npz"
        try:
            with np.load(path) as state:
                self._counts, self._num_texts = state["counts"], int(state["num_texts"])
        except Exception as error:
            raise DamagedDataError(f"{path}: cannot be read ({error}); run prepare again") from error

    def fingerprint(self) -> dict[str, object]:
        """Options that change a vector."""
        return {"embedder": "lexical", "dimension": self.dimension, "buckets": self._buckets, "seed": self._seed}
