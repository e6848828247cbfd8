"""What a task's model reads in place of the neighbours of its windows.

Shapes: q queries, k neighbours, r tokens of a neighbour with its continuation.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from retroflow.generation.database import RetrievalDatabase
from retroflow.generation.retrieved import Retrieved
from retroflow.protocols import Int64Array, Neighbours


class RandomChunks:
    """Retrieves random chunks of a database; those of a window depend on its tokens and the seed alone.

    Args:
        database: to draw from.
        seed: of the draws.
    """

    def __init__(self, database: RetrievalDatabase, *, seed: int = 0) -> None:
        self._database, self._seed = database, seed

    def retrieve(self, queries: Sequence[Sequence[int]], num_neighbours: int) -> Retrieved:
        """Draw chunks; see `LiveRetriever.retrieve`."""
        return self._database.read(self.nearest(queries, num_neighbours))

    def nearest(self, queries: Sequence[Sequence[int]], num_neighbours: int) -> Neighbours:
        """Draw the chunks that `retrieve` reads, as `RetrievalDatabase.nearest` finds them."""
        return drawn(len(self._database), queries, num_neighbours, seed=self._seed)


def drawn(size: int, queries: Sequence[Sequence[int]], k: int, *, seed: int) -> Neighbours:
    """Draw k different rows of a database for each query; -1 where it has fewer."""
    ids = np.full((len(queries), k), -1, dtype=np.int64)
    for row, query in enumerate(queries):
        digest = hashlib.blake2b(np.asarray(query, dtype=np.int64).tobytes(), digest_size=8).digest()
        generator = np.random.default_rng([seed, int.from_bytes(digest, "little")])
        ids[row, : min(k, size)] = generator.choice(size, size=min(k, size), replace=False)
    return Neighbours(ids, np.where(ids >= 0, 0.0, -np.inf).astype(np.float32))


class GivenPassages:
    """Retrieves for each prompt the passages that were found for it beforehand, and for other windows nothing.

    Args:
        passages: last window of a prompt -> tokens [k, r] and mask [k, r].
        filler: token where nothing is read.
    """

    def __init__(self, passages: Mapping[tuple[int, ...], tuple[Int64Array, np.ndarray]], *, filler: int) -> None:
        self._passages, self._filler = passages, filler
        self._length = next(iter(passages.values()))[0].shape[1]

    def retrieve(self, queries: Sequence[Sequence[int]], num_neighbours: int) -> Retrieved:
        """Return the passages of prompts; see `LiveRetriever.retrieve`."""
        tokens = np.full((len(queries), num_neighbours, self._length), self._filler, dtype=np.int64)
        mask = np.zeros(tokens.shape, dtype=bool)
        for row, query in enumerate(queries):
            if (found := self._passages.get(tuple(query))) is not None:
                tokens[row], mask[row] = found
        return Retrieved(tokens, mask, [()] * len(queries))
