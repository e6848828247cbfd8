"""The text of a neighbour: its chunk, then the continuation in the same document.

Shapes: m tokens of a chunk, k neighbours, r = 2m tokens of a neighbour with its continuation, T chunks of the database.
"""

import numpy as np
from numpy.typing import NDArray

from retroflow.protocols import Int64Array
from retroflow.store.chunk_store import ChunkSource


def read_retrieved(
    database: ChunkSource, ids: Int64Array, legal: NDArray[np.bool_]
) -> tuple[Int64Array, NDArray[np.bool_]]:
    """Read neighbours with their continuations.

    Args:
        database: T chunks.
        ids: int64 [..., k], values in [0, T) where `legal`.
        legal: bool [..., k], False if nothing was found or the neighbour must not be read.

    Returns:
        Tokens int64 [..., k, r], padded with end of text, and bool of that shape, True where a token is text. The
        continuation stops at the end of its document.
    """
    safe = np.where(legal, ids, 0)
    after = np.minimum(safe + 1, len(database) - 1)
    continues = legal & (after > safe) & (database.document_ids[after] == database.document_ids[safe])
    pairs = np.stack([safe, after], axis=-1)  # [..., k, 2]
    real = np.arange(database.chunk_length) < database.lengths[pairs].astype(np.int64)[..., None]
    real &= np.stack([legal, continues], axis=-1)[..., None]  # [..., k, 2, m]
    tokens = np.where(real, database.tokens[pairs].astype(np.int64), database.end_of_text)
    shape = (*ids.shape, 2 * database.chunk_length)
    return tokens.reshape(shape), real.reshape(shape)
