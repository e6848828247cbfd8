"""What RetrieverContract gives a retriever: queries, layouts and sources, good and bad.

Shapes: N vectors, D embedding width.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.protocols import Float32Array

BAD_QUERIES: dict[str, Any] = {
    "one_dimension": lambda width: np.ones(width, np.float32),
    "three_dimensions": lambda width: np.ones((2, 3, width), np.float32),
    "too_narrow": lambda width: np.ones((2, width - 1), np.float32),
    "too_wide": lambda width: np.ones((2, width + 1), np.float32),
    "twice_as_wide": lambda width: np.ones((2, 2 * width), np.float32),
    "no_rows_too_wide": lambda width: np.ones((0, width + 1), np.float32),
    "nan": lambda width: np.full((2, width), np.nan, np.float32),
    "inf": lambda width: np.full((2, width), np.inf, np.float32),
    "overflowing": lambda width: np.full((2, width), 1e300),
    "integers": lambda width: np.ones((2, width), np.int64),
    "strings": lambda width: np.full((2, width), "a"),
    "list": lambda width: [[1.0] * width],
    "none": lambda width: None,
}
LAYOUTS: dict[str, Any] = {
    "float16": lambda queries: queries.astype(np.float16),
    "float64": lambda queries: queries.astype(np.float64),
    "fortran": np.asfortranarray,
    "strided_rows": lambda queries: np.repeat(queries, 2, axis=0)[::2],
    "strided_columns": lambda queries: np.repeat(queries, 2, axis=1)[:, ::2],
    "read_only": lambda queries: read_only(queries),
}
BAD_K: tuple[Any, ...] = (0, -1, np.int64(0), 1.5, 2.0, "2", None, True)
LARGEST_SLICE = 65_536  # rows that a build may ask a source for at a time


class SliceOnly:
    """A VectorSource [N, D] that can be read by `source[start:stop]` and in no other way.

    Args:
        vectors: float16 or float32 [N, D].
        most_rows: a slice that asks for more is refused, for the vectors may be larger than memory.
    """

    def __init__(self, vectors: NDArray[np.floating[Any]], most_rows: int | None = None) -> None:
        self._vectors = vectors
        self._most_rows = most_rows
        self.shape = vectors.shape

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, rows: slice, /) -> NDArray[np.floating[Any]]:
        num_rows = len(range(*rows.indices(len(self))))
        if self._most_rows is not None and num_rows > self._most_rows:
            raise AssertionError(
                f"build() read {num_rows} vectors in one slice; read blocks of at most {self._most_rows} rows, for all "
                "vectors may be larger than memory"
            )
        return read_only(self._vectors[rows])


def bad_vectors(vectors: Float32Array) -> dict[str, Any]:
    """Return by name what no build may take."""
    damaged: dict[str, Any] = {}
    for name, value in {"nan": np.nan, "inf": np.inf, "huge": 1e30}.items():
        damaged[name] = vectors.copy()
        damaged[name][len(vectors) // 2, 1] = value
    all_nan = np.full_like(vectors, np.nan)
    return {**damaged, "all_nan": all_nan, "one_dimension": vectors[0], "integers": vectors.astype(np.int32)}


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a copy that cannot be changed, nor made changeable, as a memory map of stored embeddings cannot."""
    return np.frombuffer(array.tobytes(), dtype=array.dtype).reshape(array.shape)
