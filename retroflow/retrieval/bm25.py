"""BM25 by bm25s: chunks are found by the words that they share with a query, weighted by how rare the words are.

Scores are Lucene's BM25 (Robertson and Zaragoza 2009; Kamphuis et al. 2020), computed while the index is built and kept
as a sparse matrix, so that a search only adds them up. A word is a run of letters, digits and underscores, in lower
case. A chunk that shares no word with the query is no neighbour.

Everything particular to bm25s ends here: equal scores in any order, keys without a score among the best, progress bars,
numba or scipy where they are installed, which round differently, and jax, which takes most of a GPU's memory.

Shapes: q queries, N keys, w words of all keys, k neighbours.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from retroflow.errors import DamagedDataError, RetrieverError
from retroflow.options import checked_options
from retroflow.protocols import Capabilities, Float32Array, Int64Array, KeySource, Neighbours, Queries, TextSource


@contextmanager
def _without_jax() -> Iterator[None]:
    """Hide jax from an import. bm25s runs it once if it can, and jax then reserves three quarters of a GPU's memory."""
    hidden = {name: sys.modules.get(name) for name in ("jax", "jax.lax")}
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, module in hidden.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


with _without_jax():
    import bm25s
    from bm25s.tokenization import Tokenized

READ_TEXTS = 4_096
WORD = re.compile(r"\w+")


@checked_options("retriever.build")
@dataclass(frozen=True, kw_only=True)
class Bm25Build:
    """Options that change the index.

    Attributes:
        k1: how much a word counts that occurs again in the same chunk; at 0 nothing.
        b: how much longer chunks count less, from 0 (not at all) to 1.
    """

    k1: Annotated[float, Ge(0)] = 1.5
    b: Annotated[float, Ge(0), Le(1)] = 0.75


class Bm25Retriever:
    """Search by words. A build reads the texts once and holds 4 bytes a word and some 50 a different word of a chunk.

    An index holds 8 bytes a different word of a chunk, is opened by memory map, and is searched in one pass over what
    the query's words have in common with all chunks.
    """

    def __init__(self, *, build: Bm25Build | None = None) -> None:
        self._build = build or Bm25Build()
        self._index: Any = None
        self.capabilities = Capabilities(metric="own", queried_by="texts", exact=True)

    def build(self, keys: KeySource) -> None:
        """Count the words of N texts, block by block, and compute the scores."""
        vocabulary = {"": 0}  # never empty, which the library does not take
        words = _Words.read(keys.texts, vocabulary)
        index = bm25s.BM25(k1=self._build.k1, b=self._build.b, method="lucene", backend="numpy", csc_backend="numpy")
        with np.errstate(invalid="ignore"):  # of keys without any word, whose mean length is 0
            index.index(Tokenized(words, vocabulary), create_empty_token=False, show_progress=False)
        self._index = index

    def search(self, queries: Queries, k: int) -> Neighbours:
        """Score every key that shares a word with a query; several threads may search at once."""
        if self._index is None:
            raise RetrieverError("bm25: build() or load() comes before search().")
        ids = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for row, text in enumerate(queries.texts):
            words = self._index.get_tokens_ids(words_of_text(text))
            if words:
                found = self._index.get_scores_from_ids(words)  # [N]
                best = _best(found, k)
                ids[row, : len(best)], scores[row, : len(best)] = best, found[best]
        return Neighbours(ids, scores)

    def score(self, queries: Queries, ids: Int64Array) -> Float32Array:
        """Score given keys; 0 where no word is shared; see `ScoresKeys`."""
        if self._index is None:
            raise RetrieverError("bm25: build() or load() comes before score().")
        scores = np.zeros(ids.shape, np.float32)
        for row, text in enumerate(queries.texts):
            words = self._index.get_tokens_ids(words_of_text(text))
            if words:
                scores[row] = self._index.get_scores_from_ids(words)[ids[row]]
        return np.where(ids < 0, np.float32(-np.inf), scores)

    def save(self, folder: Path) -> None:
        """Write the library's own files: three arrays, the words and the parameters as JSON."""
        if self._index is None:
            raise RetrieverError("bm25: build() or load() comes before save().")
        self._index.save(folder, show_progress=False)

    def load(self, folder: Path) -> None:
        """Memory-map what `save` wrote."""
        try:
            self._index = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise DamagedDataError(f'bm25: the index in "{folder}" cannot be read: {error}') from error

    def fingerprint(self) -> dict[str, object]:
        """Build options, what a word is, and the library version (major.minor)."""
        library = ".".join(version("bm25s").split(".")[:2])
        return {"backend": "bm25", "version": library, "build": asdict(self._build), "word": WORD.pattern}


def words_of_text(text: str) -> list[str]:
    """The words of a text in their order, as often as they occur."""
    return WORD.findall(text.lower())


@dataclass(frozen=True)
class _Words:
    """The words of N texts as numbers; iterating gives a list for each text, which is all that the library asks for."""

    numbers: NDArray[np.int32]
    offsets: Int64Array

    @classmethod
    def read(cls, texts: TextSource, vocabulary: dict[str, int]) -> "_Words":
        """Number the words of texts; new words are added to the vocabulary."""
        blocks, lengths = [np.empty(0, np.int32)], [0]
        for start in range(0, len(texts), READ_TEXTS):
            block: list[int] = []
            for text in texts[start : start + READ_TEXTS]:
                words = words_of_text(text)
                block.extend(vocabulary.setdefault(word, len(vocabulary)) for word in words)
                lengths.append(len(words))
            blocks.append(np.array(block, np.int32))
        return cls(np.concatenate(blocks), np.cumsum(lengths, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[list[int]]:
        for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.numbers[start:stop].tolist()


def _best(scores: Float32Array, k: int) -> Int64Array:
    """The k best of scores [N] that are above 0, best first, equal scores by ascending id."""
    least = np.partition(scores, len(scores) - k)[len(scores) - k] if k < len(scores) else 0.0
    ids = np.flatnonzero((scores >= least) & (scores > 0.0))
    return ids[np.argsort(-scores[ids], kind="stable")][:k]
