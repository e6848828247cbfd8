"""A text that was cut into chunks for a comparison; it stays in memory.

Shapes: N chunks, m tokens of a chunk, d documents.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.console import progress
from retroflow.corpus.checked import CheckedCorpus
from retroflow.corpus.chunking import Chunks, chunk_document
from retroflow.corpus.tokenizer import Tokenizer
from retroflow.database.documents import distinct_ids
from retroflow.errors import CorpusError
from retroflow.pipeline.chunks import document_blocks
from retroflow.protocols import Int64Array
from retroflow.store.chunk_store import DocumentRecord


@dataclass
class TextChunks:
    """Chunks in memory; a `ChunkSource`.

    Attributes:
        tokens: int32 [N, m], the last chunk of a document is padded with `end_of_text`.
        lengths: uint16 [N], text tokens in each chunk.
        num_bytes: uint32 [N], UTF-8 bytes of each chunk's text.
        document_ids: int64 [N], from 0.
        chunk_length: m.
        vocabulary_size: one more than the largest token.
        end_of_text: the padding token.
        records: d documents.
    """

    tokens: NDArray[Any]
    lengths: NDArray[Any]
    num_bytes: NDArray[Any]
    document_ids: Int64Array
    chunk_length: int
    vocabulary_size: int
    end_of_text: int
    records: list[DocumentRecord]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self.records)

    def document(self, document_id: int) -> DocumentRecord:
        """Look up a document."""
        return self.records[document_id]

    def release(self) -> None:
        """Nothing is mapped."""


def cut_text(corpus: CheckedCorpus, tokenizer: Tokenizer, chunk_length: int) -> TextChunks:
    """Cut all documents of a corpus, whatever their split, into chunks.

    Raises:
        CorpusError: there is no text, or two documents have one id.
        RetroflowError: the corpus cannot be read.
    """
    end_of_text, parts, records = tokenizer.end_of_text, list[Chunks](), list[DocumentRecord]()
    with progress("cut the text into chunks", None, "documents") as advance:
        for block in document_blocks(distinct_ids(corpus.documents())):
            for document, encoded in zip(block, tokenizer.encode_batch([one.text for one in block]), strict=True):
                if len(encoded.ids):
                    parts.append(chunk_document(encoded, chunk_length=chunk_length, end_of_text=end_of_text))
                    records.append(DocumentRecord(document.id, document.title, document.source))
            advance(len(block))
    if not parts:
        raise CorpusError("The corpus has no document with text. Check the paths in the section corpus.")
    return TextChunks(
        tokens=np.concatenate([part.tokens for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        num_bytes=np.concatenate([part.num_bytes for part in parts]),
        document_ids=np.repeat(np.arange(len(parts)), [len(part.lengths) for part in parts]),
        chunk_length=chunk_length,
        vocabulary_size=tokenizer.vocabulary_size,
        end_of_text=end_of_text,
        records=records,
    )
