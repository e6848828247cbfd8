"""Chunks of a database as passages for questions: "title: ..., source: ...".

Shapes: k passages, r = 2m tokens of a chunk with its continuation.
"""

import numpy as np
from numpy.typing import NDArray

from retroflow.corpus.questions import passage_text
from retroflow.corpus.tokenizer import Tokenizer
from retroflow.data.retrieved import read_retrieved
from retroflow.protocols import Int64Array
from retroflow.store.chunk_store import ChunkSource

KEPT = 1 << 16
"""Passages whose tokens are kept, at most."""


class Passages:
    """The passages of a database. Each is a chunk and its continuation after its title, cut to r tokens.

    Args:
        chunks: of the database.
        tokenizer: of its tokens.
    """

    def __init__(self, chunks: ChunkSource, tokenizer: Tokenizer) -> None:
        self._chunks, self._tokenizer = chunks, tokenizer
        self._tokens: dict[int, list[int]] = {}

    def read(self, ids: Int64Array, legal: NDArray[np.bool_]) -> tuple[Int64Array, NDArray[np.bool_]]:
        """Read passages, as `retroflow.data.retrieved.read_retrieved` reads chunks without titles.

        Args:
            ids: int64 [..., k], values in [0, T) where `legal`.
            legal: bool [..., k], False where nothing is read.

        Returns:
            Tokens int64 [..., k, r], padded with end of text, and bool of that shape, True where a token is text.
        """
        tokens = np.full((*ids.shape, 2 * self._chunks.chunk_length), self._chunks.end_of_text, dtype=np.int64)
        mask = np.zeros(tokens.shape, dtype=bool)
        for place in zip(*np.nonzero(legal), strict=True):
            found = self.tokens_of(int(ids[place]))
            tokens[place][: len(found)] = found
            mask[place][: len(found)] = True
        return tokens, mask

    def text(self, chunk: int) -> str:
        """Return the text of a passage, as it is read."""
        return self._tokenizer.decode(self.tokens_of(chunk))

    def tokens_of(self, chunk: int) -> list[int]:
        """Return the tokens of a passage, r at most."""
        if chunk not in self._tokens:
            ids = np.array([chunk])
            (tokens,), (real,) = read_retrieved(self._chunks, ids, ids >= 0)
            title = self._chunks.document(int(self._chunks.document_ids[ids][0])).title
            text = passage_text(title, self._tokenizer.decode(tokens[real].tolist()))
            if len(self._tokens) >= KEPT:
                self._tokens.clear()
            self._tokens[chunk] = self._tokenizer.encode(text).ids[: len(tokens)].tolist()
        return self._tokens[chunk]
