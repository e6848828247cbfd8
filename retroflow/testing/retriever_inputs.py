"""What RetrieverContract gives a retriever: queries, layouts and sources, good and bad.

Shapes: N vectors, D embedding width.
"""

from typing import Any

import numpy as np

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
    "read_only": lambda queries: _read_only(queries),
}
BAD_K: tuple[Any, ...] = (0, -1, np.int64(0), 1.5, 2.0, "2", None, True)
# What a build over bad vectors must say, and what a search or save without an index must say.
REFUSALS = {
    **dict.fromkeys(
        ("nan", "inf", "huge", "all_nan", "one_dimension", "integers"),
        "InvalidVectorsError",
    ),
    **dict.fromkeys(("search_before_build", "save_before_build"), "RetrieverError"),
}


class SliceOnly:
    """A VectorSource [N, D] that can be read by `source[start:stop]` and in no other way."""

    def __init__(self, vectors: Float32Array) -> None:
        self._vectors = vectors
        self.shape = vectors.shape

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, rows: slice, /) -> Float32Array:
        return self._vectors[rows].copy()


def _read_only(queries: Float32Array) -> Float32Array:
    queries = queries.copy()
    queries.flags.writeable = False
    return queries
