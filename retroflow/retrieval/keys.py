"""Keys and queries: made from vectors and texts, and checked before a retriever reads them.

A key or query has a vector, a text, or both. The retriever declares which it reads (`Capabilities.queried_by`), and
only those are made: embeddings and texts are computed at their first use.

Shapes: q queries, N keys, D embedding width.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from retroflow.errors import InvalidTextsError, InvalidVectorsError, RetrieverError, UsageError
from retroflow.protocols import Capabilities, Float32Array, Int64Array, QueriedBy, TextSource
from retroflow.retrieval.vectors import CheckedSource, check_finite, checked_vectors


@dataclass(frozen=True)
class Keys:
    """A `KeySource` of vectors, texts or both; one that is None must not be read.

    Attributes:
        vectors: a VectorSource [N, D], such as an array or an embedding store.
        texts: a TextSource of N texts, such as a list.
    """

    vectors: Any = None
    texts: Any = None

    def __len__(self) -> int:
        return len(self.texts if self.vectors is None else self.vectors)

    def __getitem__(self, rows: Any) -> "Keys":
        """Some of them: a slice, or, of arrays and lists, the rows of a list or an array."""
        texts = self.texts
        if texts is not None:
            texts = texts[rows] if isinstance(rows, slice) else [texts[row] for row in np.asarray(rows).tolist()]
        return Keys(None if self.vectors is None else self.vectors[rows], texts)


class LazyQueries:
    """q `Queries` whose vectors and texts are made at their first use.

    Args:
        count: q.
        vectors: makes float32 [q, D].
        texts: makes q texts.
    """

    def __init__(self, count: int, *, vectors: Callable[[], Float32Array], texts: Callable[[], Sequence[str]]) -> None:
        self._count, self._make_vectors, self._make_texts = count, vectors, texts

    def __len__(self) -> int:
        return self._count

    @cached_property
    def vectors(self) -> Float32Array:
        """Float32 [q, D]."""
        return self._make_vectors()

    @cached_property
    def texts(self) -> Sequence[str]:
        """The q texts."""
        return self._make_texts()

    def part(self, rows: Int64Array) -> "LazyQueries":
        """The queries of some rows int64 [p]."""
        return LazyQueries(
            len(rows), vectors=lambda: self.vectors[rows], texts=lambda: [self.texts[row] for row in rows.tolist()]
        )


@dataclass(frozen=True)
class CheckedTexts:
    """N texts; each block is checked as it is read for its length and for str."""

    texts: TextSource

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: slice, /) -> list[str]:
        if not isinstance(rows, slice):
            raise TypeError("texts are read by slices only, texts[start:stop]; one text is texts[row : row + 1][0].")
        start, stop, step = rows.indices(len(self))
        block = checked_texts(self.texts[rows], f"texts[{start}:{stop}]")
        if len(block) != len(range(start, stop, step)):
            raise InvalidTextsError(f"texts[{start}:{stop}] holds {len(block)} texts, not {stop - start}.")
        return block


class Declared:
    """Keys or queries that allow a retriever to read only what it has declared.

    Args:
        name: "keys" or "queries".
        queried_by: as declared by the retriever.
        vectors, texts: None if not declared.
    """

    def __init__(self, name: str, queried_by: QueriedBy, vectors: Any, texts: Any) -> None:
        self._name, self._queried_by = name, queried_by
        self._vectors, self._texts = vectors, texts
        self._count = len(texts if vectors is None else vectors)
        if texts is not None and len(texts) != self._count:
            raise InvalidVectorsError(f"{name}: {len(vectors)} vectors and {len(texts)} texts; give as many of each.")

    def __len__(self) -> int:
        return self._count

    @property
    def vectors(self) -> Any:
        """As in `KeySource` or `Queries`."""
        return self._vectors if self._vectors is not None else self._missing("vectors")

    @property
    def texts(self) -> Any:
        """As in `KeySource` or `Queries`."""
        return self._texts if self._texts is not None else self._missing("texts")

    def _missing(self, part: str) -> NoReturn:
        raise RetrieverError(
            f'it reads {self._name}.{part}, and its capabilities declare queried_by="{self._queried_by}"; declare '
            f'"{part}" or "both".'
        )


def checked_keys(keys: object, capabilities: Capabilities) -> Declared:
    """Return checked keys for a retriever, from a KeySource or from only the vectors or texts that it reads.

    Raises:
        InvalidVectorsError: no vectors where they are declared, or vectors of a wrong rank or dtype.
        InvalidTextsError: no texts where they are declared.
    """
    vectors = CheckedSource(_part_of(keys, "vectors")) if capabilities.reads_vectors else None
    texts = CheckedTexts(_texts_of(keys, "keys")) if capabilities.reads_texts else None
    return Declared("keys", capabilities.queried_by, vectors, texts)


def checked_queries(queries: object, capabilities: Capabilities, dimension: int | None) -> Declared:
    """Return checked queries for a retriever, from `Queries` or from only the vectors or texts that it reads.

    Raises:
        InvalidVectorsError: no vectors where they are declared, of a wrong rank, dtype or width, or not finite.
        InvalidTextsError: no texts where they are declared, or one that is not a str.
    """
    vectors = texts = None
    queried_by = capabilities.queried_by
    if queried_by != "texts":
        vectors = np.ascontiguousarray(checked_vectors(_part_of(queries, "vectors"), "queries"), dtype=np.float32)
        if vectors.shape[1] != dimension:
            raise InvalidVectorsError(
                f"queries have {vectors.shape[1]} columns, but the index was built over vectors of {dimension}; "
                "embed queries with the embedder that made the index."
            )
        check_finite(vectors, "queries", 0)
    if queried_by != "vectors":
        texts = checked_texts(_texts_of(queries, "queries"), "queries")
    return Declared("queries", queried_by, vectors, texts)


def _part_of(value: object, part: str) -> Any:
    """Return the vectors or texts of keys or queries; a value without that attribute is returned itself."""
    if type(value) is np.ndarray:
        return value
    # Looked for in the class and the instance's own attributes: hasattr(value, part) would compute it.
    has_part = hasattr(type(value), part) or part in getattr(value, "__dict__", ())
    return getattr(value, part) if has_part else value


def _texts_of(value: object, name: str) -> Any:
    texts = _part_of(value, "texts")
    if isinstance(texts, str | np.ndarray) or not isinstance(texts, TextSource):
        raise InvalidTextsError(f"{name} must be texts, a list of str, not {type(value).__name__}.")
    return texts


def checked_texts(texts: object, name: str) -> list[str]:
    """Return texts as a list of str.

    Raises:
        InvalidTextsError: they are something else; the message names the first wrong one.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InvalidTextsError(f"{name} must be a list of str, not {type(texts).__name__}.")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidTextsError(f"{name}: text {row} is a {type(text).__name__}, not a str.")
    return list(texts)


def checked_ids(ids: Any, live: NDArray[np.bool_]) -> Int64Array:
    """Return ids [r] of keys to remove in ascending order, each once.

    Args:
        ids: whole numbers.
        live: bool [n], whether the key with an id is in the index.

    Raises:
        UsageError: they are something else, or a key is not there.
    """
    given = np.asarray(ids)
    if given.ndim != 1 or (len(given) and given.dtype.kind not in "iu"):
        raise UsageError(f"ids must be a list or array of whole numbers, not {given.dtype} {list(given.shape)}.")
    checked = np.unique(given.astype(np.int64))
    absent = np.setdiff1d(checked, np.flatnonzero(live))
    if len(absent):
        state = "it was removed before" if 0 <= absent[0] < len(live) else f"which was given {len(live)} keys so far"
        raise UsageError(f"ids: {absent[0]} is not in the index, {state}; nothing was removed.")
    return checked


def checked_k(k: SupportsIndex) -> int:
    """Return how many neighbours are wanted as an int.

    Raises:
        InvalidVectorsError: it is no integer, or less than 1.
    """
    if type(k) is int and k > 0:
        return k
    try:
        if isinstance(k, bool | np.bool_):
            raise TypeError
        number = operator.index(k)
    except TypeError:
        raise InvalidVectorsError(f"k must be an integer, not {k!r} of type {type(k).__name__}.") from None
    if number < 1:
        raise InvalidVectorsError(f"k must be at least 1, not {number}.")
    return number
