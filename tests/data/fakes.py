"""Chunk stores in memory, with the attributes of the stored ones."""

from dataclasses import dataclass

import numpy as np

from retroflow.store.chunk_store import DocumentRecord

END_OF_TEXT = 0


@dataclass
class FakeChunks:
    """Documents of given lengths in tokens, cut into padded chunks; text tokens are 1, 2, 3, ... unless given."""

    tokens: np.ndarray
    lengths: np.ndarray
    num_bytes: np.ndarray
    document_ids: np.ndarray
    chunk_length: int
    vocabulary_size: int
    end_of_text: int = END_OF_TEXT

    def __len__(self) -> int:
        return len(self.tokens)

    def release(self) -> None:
        pass

    def document(self, document_id: int) -> DocumentRecord:
        return DocumentRecord(id=str(document_id), title=f"document {document_id}", source=f"{document_id}.txt")


def make_chunks(
    document_lengths: list[int],
    *,
    chunk_length: int = 4,
    first_document: int = 0,
    vocabulary_size: int = 1000,
    seed: int = 0,
) -> FakeChunks:
    """Make a store whose documents have `document_lengths` random tokens; every token has 2 bytes."""
    generator = np.random.default_rng(seed)
    tokens, lengths, documents = [], [], []
    for number, length in enumerate(document_lengths):
        text = generator.integers(1, vocabulary_size, size=length)
        for start in range(0, length, chunk_length):
            part = text[start : start + chunk_length]
            tokens.append(np.concatenate([part, np.full(chunk_length - len(part), END_OF_TEXT)]))
            lengths.append(len(part))
            documents.append(first_document + number)
    return FakeChunks(
        tokens=np.array(tokens, dtype=np.uint16),
        lengths=np.array(lengths, dtype=np.uint16),
        num_bytes=np.array(lengths, dtype=np.uint32) * 2,
        document_ids=np.array(documents, dtype=np.int64),
        chunk_length=chunk_length,
        vocabulary_size=vocabulary_size,
    )


def random_neighbours(
    count: int, database: FakeChunks, *, k: int = 2, missing: float = 0.2, seed: int = 1
) -> np.ndarray:
    """Random neighbour ids [count, k], a share of them missing."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(len(database), size=(count, k))
    ids[generator.random((count, k)) < missing] = -1
    return ids.astype(np.int64)
