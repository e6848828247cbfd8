"""The chunks of one split, memory-mapped: tokens, lengths, bytes and documents.

Shapes: N chunks, m tokens of a chunk.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retroflow.store.array_file import map_array, release_pages
from retroflow.store.artifact import open_artifact
from retroflow.store.manifest import damaged


@dataclass(frozen=True)
class DocumentRecord:
    """Where a chunk comes from, without its text."""

    id: str
    title: str
    source: str


class ChunkStore:
    """One split of a chunks artifact, `chunks-<fingerprint>/train` or `/valid`.

    Attributes:
        tokens: uint16 or uint32 [N, m]; the last chunk of a document is filled up with `end_of_text`.
        lengths: uint16 [N], text tokens in each chunk.
        num_bytes: uint32 [N], UTF-8 bytes of each chunk's text.
        document_ids: int64 [N], non-decreasing; those of "valid" continue after those of "train".
        chunk_length: m.
        vocabulary_size: one more than the largest token.
        end_of_text: the token that fills up.
    """

    def __init__(self, folder: Path) -> None:
        artifact, split = folder.parent, folder.name
        manifest = open_artifact(artifact, kind="chunks")
        if f"{split}/tokens.npy" not in manifest.files:
            raise damaged(artifact / "manifest.json", f'it has no split "{split}"', artifact)

        def mapped(name: str) -> NDArray[Any]:
            path = f"{split}/{name}.npy"
            return map_array(artifact, path, manifest.files[path])

        self.tokens: NDArray[np.unsignedinteger[Any]] = mapped("tokens")
        self.lengths: NDArray[np.uint16] = mapped("lengths")
        self.num_bytes: NDArray[np.uint32] = mapped("num_bytes")
        self.document_ids: NDArray[np.int64] = mapped("document_ids")
        self._records: NDArray[np.uint8] = mapped("documents")
        self._offsets: NDArray[np.int64] = mapped("document_offsets")
        self.chunk_length = int(manifest.info["chunk_length"])
        self.vocabulary_size = int(manifest.info["vocabulary_size"])
        self.end_of_text = int(manifest.info["end_of_text"])
        self._first_document = int(manifest.info["splits"][split]["first_document"])

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a split's folder, checked (see `retroflow.store.artifact`).

        Raises:
            RetroflowError: no such artifact.
            DamagedDataError: its bytes are not what was written.
        """
        return cls(Path(folder).absolute())

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_documents(self) -> int:
        """Documents of this split."""
        return len(self._offsets) - 1

    def document(self, document_id: int) -> DocumentRecord:
        """Look up a document of this split.

        Raises:
            IndexError: the id is of no document of this split.
        """
        row = int(document_id) - self._first_document
        if not 0 <= row < self.num_documents:
            last = self._first_document + self.num_documents - 1
            raise IndexError(f"document id {document_id} is not in this split: {self._first_document} to {last}")
        start, stop = self._offsets[row : row + 2].tolist()
        return DocumentRecord(*json.loads(self._records[start:stop].tobytes()))

    def release(self) -> None:
        """Give back the memory that reading has mapped in; reading again maps it anew."""
        for array in (self.tokens, self.lengths, self.num_bytes, self.document_ids):
            release_pages(array)
