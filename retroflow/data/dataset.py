"""Whole batches from memory-mapped artifacts, by numpy indexing only.

Shapes: b sequences, s chunks of a sequence, m tokens of a chunk, n = s * m, k neighbours, r = 2m; N chunks of the
split, T chunks of the training split (the retrieval database).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from retroflow.data.batch import NOT_PREDICTED, Batch
from retroflow.data.retrieved import read_retrieved
from retroflow.data.windows import WindowTable
from retroflow.errors import CorpusError
from retroflow.protocols import Int64Array
from retroflow.store.array_file import check_mapped
from retroflow.store.chunk_store import ChunkSource

ReadNeighbours = Callable[[Int64Array, NDArray[np.bool_]], tuple[Int64Array, NDArray[np.bool_]]]
"""Reads neighbours, as `retroflow.data.retrieved.read_retrieved` does from a database."""

_RANDOM_STREAM = 2
"""Separates the random stream of random neighbours from the others of the recipe's seed."""


class SequenceDataset(Dataset[Batch]):
    """Sequences of consecutive chunks with the neighbours of each chunk, assembled one batch at a time.

    A sequence may cross documents. A neighbour is masked if its document occurs in the sequence or holds the last
    target, because its text could contain the answer.

    Args:
        chunks: the split of the sequences, N chunks.
        sequence_chunks: chunks of a sequence.
        database: the training split, T chunks; neighbour ids are its rows.
        neighbours: int64 [N, k] rows of `database`, -1 where there is none; or a table of windows, for sequences as in
            `in_order`; None for batches without retrieval.
        random_share: share of chunks that get random neighbours instead, 0 to 1.
        seed: chooses both, with a sequence's first chunk and nothing else.
        answers_only: a sequence is a question, padded at the left, and its answer, which alone is predicted.
        read: reads neighbours, int64 [..., k] where bool [..., k]; None for `read_retrieved` from `database`.

    Raises:
        CorpusError: the split is empty.
        ValueError: `neighbours` has another number of rows than the split.
    """

    def __init__(
        self,
        chunks: ChunkSource,
        *,
        sequence_chunks: int,
        database: ChunkSource | None = None,
        neighbours: Int64Array | WindowTable | None = None,
        random_share: float = 0.0,
        seed: int = 0,
        answers_only: bool = False,
        read: ReadNeighbours | None = None,
    ) -> None:
        if len(chunks) == 0:
            raise CorpusError("A split of the corpus has no chunks. Use a larger corpus, or hold out another share.")
        if isinstance(neighbours, np.ndarray) and len(neighbours) != len(chunks):
            raise ValueError(f"neighbours: {len(neighbours):,} rows for {len(chunks):,} chunks; give one per chunk.")
        self.chunks = chunks
        self.sequence_chunks = sequence_chunks
        self._database = database
        self._neighbours = neighbours
        self._random_share, self._seed = random_share, seed
        self.answers_only, self._read = answers_only, read
        stores: list[ChunkSource] = [store for store in (chunks, database) if store is not None]
        self._files = [array for store in stores for array in (store.tokens, store.lengths, store.document_ids)]
        self._files += [chunks.num_bytes, *([neighbours] if isinstance(neighbours, np.ndarray) else [])]

    def __len__(self) -> int:
        """Return the number of sequences of the split; the last one may be shorter."""
        return -(-len(self.chunks) // self.sequence_chunks)

    def __getitem__(self, start: int) -> Batch:
        return self.assemble([start], self.sequence_chunks)

    def __getitems__(self, starts: list[int]) -> Batch:
        """Return the batch of full sequences that begin at the chunks `starts`; torch calls it for batched reads."""
        return self.assemble(starts, self.sequence_chunks)

    def in_order(self, batch_size: int, sequences: Int64Array | None = None) -> Iterator[Batch]:
        """Yield every chunk of the split exactly once, in order; a shorter last sequence is a separate batch.

        Args:
            batch_size: sequences of a batch.
            sequences: int64 [s], ascending, the sequences to yield; None for all of them.
        """
        wanted = np.arange(len(self), dtype=np.int64) if sequences is None else sequences
        num_full = len(self.chunks) // self.sequence_chunks
        starts = wanted[wanted < num_full] * self.sequence_chunks
        for first in range(0, len(starts), batch_size):
            yield self.assemble(starts[first : first + batch_size], self.sequence_chunks)
        if len(starts) < len(wanted):
            start = num_full * self.sequence_chunks
            yield self.assemble([start], len(self.chunks) - start)

    def assemble(self, starts: Sequence[int] | Int64Array, num_chunks: int) -> Batch:
        """Build the batch of sequences of `num_chunks` chunks that begin at chunks `starts` [b].

        Raises:
            DamagedDataError: a file of an artifact was truncated after it was opened.
        """
        check_mapped(self._files)
        rows = np.asarray(starts, dtype=np.int64)[:, None] + np.arange(num_chunks)  # [b, s]
        following = np.minimum(rows[:, -1:] + 1, len(self.chunks) - 1)  # [b, 1], the last chunk has none
        tokens, targets = self._tokens_and_targets(rows, following)
        retrieved, mask, is_random = None, None, None
        if self._neighbours is not None and self._database is not None:
            documents = self.chunks.document_ids[np.concatenate([rows, following], axis=1)]  # [b, s + 1]
            retrieved, mask, is_random = self._retrieved(rows, documents)
        return Batch(
            tokens=torch.from_numpy(tokens),
            targets=torch.from_numpy(targets),
            retrieved=None if retrieved is None else torch.from_numpy(retrieved),
            retrieved_mask=None if mask is None else torch.from_numpy(mask),
            num_bytes=torch.from_numpy(self.chunks.num_bytes[rows].sum(axis=1, dtype=np.int64)),
            is_random=torch.from_numpy(is_random) if self._random_share and is_random is not None else None,
            padding=torch.from_numpy(self._padding(tokens)) if self.answers_only else None,
        )

    def _tokens_and_targets(self, rows: Int64Array, following: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return inputs and next tokens, int64 [b, n] each; see the padding rule in docs/training.md."""
        chunk_length = self.chunks.chunk_length
        batch, num_chunks = rows.shape
        tokens = self.chunks.tokens[rows].astype(np.int64)  # [b, s, m]
        lengths = self.chunks.lengths[rows].astype(np.int64)[:, :, None]  # [b, s, 1]
        # The first padding token is the end of its document and is predicted; the others have no meaning.
        predicted = np.arange(chunk_length) <= lengths  # [b, s, m]
        next_tokens = self.chunks.tokens[following[:, 0]][:, 0].astype(np.int64)  # [b]
        next_exists = rows[:, -1] + 1 < len(self.chunks)
        flat_tokens = tokens.reshape(batch, num_chunks * chunk_length)  # [b, n]
        shifted = np.where(predicted, tokens, NOT_PREDICTED).reshape(flat_tokens.shape)
        targets = np.concatenate([shifted[:, 1:], np.where(next_exists, next_tokens, NOT_PREDICTED)[:, None]], axis=1)
        if self.answers_only:
            targets[:, : chunk_length - 1] = targets[:, -1] = NOT_PREDICTED
        return flat_tokens, targets

    def _retrieved(
        self, rows: Int64Array, documents: Int64Array
    ) -> tuple[Int64Array, NDArray[np.bool_], NDArray[np.bool_]]:
        """Return neighbours with continuations, and where they are random.

        The former are int64 [b, W, k, r], and bool of that shape, True for real tokens; the latter is bool [b, W].
        There is one window for each chunk, unless a table of windows was given.

        Args:
            rows: int64 [b, s], chunks of the sequences.
            documents: int64 [b, s + 1], documents whose text must not be retrieved.
        """
        assert self._database is not None and self._neighbours is not None
        database = self._database
        if isinstance(self._neighbours, WindowTable):
            sequences, m = rows[:, 0] // self.sequence_chunks, self.chunks.chunk_length
            ids = self._neighbours.of(sequences, rows.shape[1] * m, m)  # [b, W, k]
        else:
            ids = np.array(self._neighbours[rows], dtype=np.int64)  # [b, s, k]
        is_random = np.zeros(ids.shape[:2], dtype=bool)
        for row, first in enumerate(rows[:, 0].tolist() if self._random_share else ()):
            generator = np.random.default_rng([self._seed, first, _RANDOM_STREAM])
            is_random[row] = generator.random(len(ids[row])) < self._random_share
            drawn = generator.integers(len(database), size=ids.shape[1:])
            ids[row, is_random[row]] = drawn[is_random[row]]
        neighbour_documents = database.document_ids[np.maximum(ids, 0)]
        own = (neighbour_documents[..., None] == documents[:, None, None, :]).any(axis=-1)
        read = self._read or partial(read_retrieved, database)
        return *read(ids, (ids >= 0) & ~own), is_random

    def _padding(self, tokens: Int64Array) -> Int64Array:
        """Return int64 [b], end-of-text tokens at the left of sequences int64 [b, n]."""
        is_text = tokens != self.chunks.end_of_text
        return np.where(is_text.any(axis=1), is_text.argmax(axis=1), 0)
