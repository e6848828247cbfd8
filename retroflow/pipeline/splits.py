"""The prepared artifacts, opened for training: chunks and neighbours of both splits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retroflow.data import SequenceDataset
from retroflow.data.dataset import ReadNeighbours
from retroflow.data.windows import WindowTable
from retroflow.errors import CorpusError
from retroflow.pipeline.prepare import Prepared
from retroflow.protocols import Int64Array, VectorSource
from retroflow.store.chunk_store import ChunkSource, ChunkStore
from retroflow.store.embedding_store import EmbeddingStore
from retroflow.store.neighbour_table import NeighbourTable


@dataclass(frozen=True)
class Splits:
    """Chunk stores and neighbour tables, memory-mapped.

    Attributes:
        train_chunks: the training split, which is the retrieval database too.
        valid_chunks: the validation split.
        train_neighbours: int64 [N_train, k] rows of `train_chunks`, -1 = none; k = 0 where nothing is retrieved.
        validation_neighbours: int64 [N_valid, k] rows of `train_chunks`, -1 = none.
        sequence_chunks: chunks of a sequence.
        validation_scores: float32 [N_valid, k], higher is better, -inf = none; None if they are not known.
        tokenizer: its folder; None if the tokens do not represent text.
        validation_embeddings: of `valid_chunks`; None if they were not embedded.
        other_database: what the ids of neighbours are rows of, if not of the training split.
        answers_only: sequences are questions with their answers (`SequenceDataset`).
        read: reads neighbours; None to read them as they are.
    """

    train_chunks: ChunkSource
    valid_chunks: ChunkSource
    train_neighbours: Int64Array
    validation_neighbours: Int64Array
    sequence_chunks: int
    validation_scores: NDArray[np.float32] | None = None
    tokenizer: Path | None = None
    validation_embeddings: VectorSource | None = None
    other_database: ChunkSource | None = None
    answers_only: bool = False
    read: ReadNeighbours | None = None

    @property
    def database(self) -> ChunkSource:
        """What is retrieved from."""
        return self.train_chunks if self.other_database is None else self.other_database

    def training(self, *, retrieval: bool, random_share: float = 0.0, seed: int = 0) -> SequenceDataset:
        """Sequences to train on, a share of their chunks with random neighbours, which the seed chooses."""
        return SequenceDataset(
            self.train_chunks,
            sequence_chunks=self.sequence_chunks,
            database=self.database,
            neighbours=self.train_neighbours if retrieval else None,
            random_share=random_share,
            seed=seed,
            answers_only=self.answers_only,
            read=self.read,
        )

    def validation(self, neighbours: Int64Array | WindowTable | None = None) -> SequenceDataset:
        """Sequences to be judged on, with whatever neighbours int64 [N_valid, k] are given, or those of windows."""
        return SequenceDataset(
            self.valid_chunks,
            sequence_chunks=self.sequence_chunks,
            database=self.database,
            neighbours=neighbours,
            answers_only=self.answers_only,
            read=self.read,
        )


def open_splits(prepared: Prepared, *, sequence_chunks: int) -> Splits:
    """Open what `prepare` made.

    Raises:
        CorpusError: the corpus has no validation text.
    """
    valid = ChunkStore.open(prepared.valid_chunks)
    if len(valid) == 0:
        raise CorpusError(
            "the corpus has no validation chunks, so nothing could be measured; hold out more documents "
            "(docs/corpus.md)."
        )
    train = ChunkStore.open(prepared.train_chunks)
    if prepared.train_neighbours is None or prepared.valid_neighbours is None:
        return Splits(
            train_chunks=train,
            valid_chunks=valid,
            train_neighbours=np.empty((len(train), 0), dtype=np.int64),
            validation_neighbours=np.empty((len(valid), 0), dtype=np.int64),
            sequence_chunks=sequence_chunks,
            tokenizer=prepared.tokenizer,
        )
    found, embeddings = NeighbourTable.open(prepared.valid_neighbours), prepared.valid_embeddings
    return Splits(
        train_chunks=train,
        valid_chunks=valid,
        train_neighbours=NeighbourTable.open(prepared.train_neighbours).ids,
        validation_neighbours=np.asarray(found.ids),
        sequence_chunks=sequence_chunks,
        validation_scores=found.scores,
        tokenizer=prepared.tokenizer,
        validation_embeddings=None if embeddings is None else EmbeddingStore.open(embeddings),
    )
