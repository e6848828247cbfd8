"""Neighbours of the windows of sequences, for lookups more often than once a chunk (retroflow/model/windows.py).

Shapes: S sequences, b of them, W windows of a sequence, m tokens of a chunk, s tokens between lookups, k neighbours.
"""

from dataclasses import dataclass

import numpy as np

from retroflow.protocols import Float32Array, Int64Array


@dataclass(frozen=True)
class WindowTable:
    """What was found for some sequences of a split.

    Attributes:
        sequences: int64 [S], ascending.
        ids: int64 [S, W, k], rows of the database, -1 = none. A shorter sequence has them for its first windows.
        step: s.
        scores: float32 [S, W, k] of the retriever, -inf = none; None if they are not known.
    """

    sequences: Int64Array
    ids: Int64Array
    step: int
    scores: Float32Array | None = None

    def of(self, sequences: Int64Array, num_tokens: int, chunk_length: int) -> Int64Array:
        """Return int64 [b, W, k] for sequences [b] of so many tokens.

        Raises:
            ValueError: a sequence was not looked up.
        """
        rows = np.minimum(np.searchsorted(self.sequences, sequences), len(self.sequences) - 1)
        if (self.sequences[rows] != sequences).any():
            raise ValueError(f"neighbours: sequences {sequences.tolist()} were not all looked up.")
        return self.ids[rows, : (num_tokens - chunk_length) // self.step + 1]
