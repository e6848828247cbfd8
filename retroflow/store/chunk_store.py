"""The chunks of one split, memory-mapped: tokens, lengths, bytes and documents.

Shapes: N chunks, m tokens of a chunk.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from retroflow.store.agreement import ROWS_AT_A_TIME, check_offsets, check_records, check_shapes, damaged_rows
from retroflow.store.array_file import map_array, release_pages
from retroflow.store.artifact import open_artifact
from retroflow.store.manifest import Manifest, damaged


@dataclass(frozen=True)
class DocumentRecord:
    """The origin of a chunk, without its text."""

    id: str
    title: str
    source: str


class ChunkSource(Protocol):
    """Chunks to read from: a `ChunkStore`, or a version of a database.

    Attributes:
        tokens, lengths, num_bytes, document_ids: as of `ChunkStore`, read by numpy's indexing.
    """

    chunk_length: int
    vocabulary_size: int
    end_of_text: int

    @property
    def tokens(self) -> Any: ...

    @property
    def lengths(self) -> Any: ...

    @property
    def num_bytes(self) -> Any: ...

    @property
    def document_ids(self) -> Any: ...

    def __len__(self) -> int: ...

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        ...

    def document(self, document_id: int, /) -> DocumentRecord:
        """Look up a document."""
        ...

    def release(self) -> None:
        """Release mapped memory; reading maps it again."""
        ...


class ChunkStore:
    """One split of a chunks artifact, `chunks-<fingerprint>/train` or `/valid`.

    Attributes:
        tokens: uint16 or uint32 [N, m]; the last chunk of a document is padded with `end_of_text`.
        lengths: uint16 [N], text tokens in each chunk.
        num_bytes: uint32 [N], UTF-8 bytes of each chunk's text.
        document_ids: int64 [N], non-decreasing; those of "valid" continue after those of "train".
        chunk_length: m.
        vocabulary_size: one more than the largest token.
        end_of_text: the padding token.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        artifact, split = folder.parent, folder.name
        if f"{split}/tokens.npy" not in manifest.files:
            raise damaged(artifact / "manifest.json", f'it has no split "{split}"', artifact)

        def mapped(name: str) -> NDArray[Any]:
            path = f"{split}/{name}.npy"
            return map_array(artifact, path, manifest.files[path])

        self._folder = folder
        self._counts: Mapping[str, int] = manifest.info["splits"][split]
        self._first_document = self._counts["first_document"]
        self.chunk_length = int(manifest.info["chunk_length"])
        self.vocabulary_size = int(manifest.info["vocabulary_size"])
        self.end_of_text = int(manifest.info["end_of_text"])
        chunks = self._counts["chunks"]
        shapes = {"tokens": (chunks, self.chunk_length), "document_offsets": (self._counts["documents"] + 1,)}
        shapes |= dict.fromkeys(("lengths", "num_bytes", "document_ids"), (chunks,))
        check_shapes(artifact, manifest, {f"{split}/{name}.npy": shape for name, shape in shapes.items()})
        self.tokens: NDArray[np.unsignedinteger[Any]] = mapped("tokens")
        self.lengths: NDArray[np.uint16] = mapped("lengths")
        self.num_bytes: NDArray[np.uint32] = mapped("num_bytes")
        self.document_ids: NDArray[np.int64] = mapped("document_ids")
        self._records: NDArray[np.uint8] = mapped("documents")
        self._offsets: NDArray[np.int64] = mapped("document_offsets")
        self._check_documents()

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a split's folder, checked (see `retroflow.store.artifact`).

        Also checks what needs no reading of chunks: every array has one row per chunk, and the records of the documents
        follow each other to the end of their file.

        Raises:
            RetroflowError: there is no such artifact.
            DamagedDataError: its bytes differ from what was written, or do not fit together.
        """
        folder = Path(folder).absolute()
        return cls(folder, open_artifact(folder.parent, kind="chunks"))

    @classmethod
    def in_progress(cls, folder: Path, manifest: Manifest) -> Self:
        """Open a split of an artifact that is still being made; its bytes are not hashed."""
        return cls(folder.absolute(), manifest)

    def check_rows(self) -> None:
        """Check every chunk and every record; this is slow, so it is done only once, when they are made.

        Raises:
            DamagedDataError: chunks, lengths, bytes, documents and records do not fit together.
        """
        check_records(self._folder / "documents.npy", self._records, self._offsets)
        tokens, text_bytes = 0, 0
        for start in range(0, len(self), ROWS_AT_A_TIME):
            lengths = np.asarray(self.lengths[start : start + ROWS_AT_A_TIME])
            # One more row, so that the last chunk of the block is compared with the next.
            steps = np.diff(self.document_ids[start : start + ROWS_AT_A_TIME + 1])
            if not ((steps == 0) | (steps == 1)).all():
                raise damaged_rows(self._folder / "document_ids.npy", "its documents do not follow one another")
            is_inside = steps == 0  # not the last chunk of its document
            if (lengths == 0).any() or (lengths[: len(steps)][is_inside] != self.chunk_length).any():
                raise damaged_rows(self._folder / "lengths.npy", "a chunk ends before its document does")
            tokens += int(lengths.sum(dtype=np.int64))
            text_bytes += int(self.num_bytes[start : start + ROWS_AT_A_TIME].sum(dtype=np.int64))
            self.release()
        found = {"tokens": tokens, "text_bytes": text_bytes}
        if any(self._counts[name] != number for name, number in found.items()):
            raise damaged_rows(self._folder / "lengths.npy", f"its chunks have {found}, and not {dict(self._counts)}")

    def _check_documents(self) -> None:
        check_offsets(self._folder / "document_offsets.npy", self._offsets, len(self._records))
        ends = (self._first_document, self._first_document + self.num_documents - 1)
        if len(self) and (int(self.document_ids[0]), int(self.document_ids[-1])) != ends:
            what = f"it goes from document {self.document_ids[0]} to {self.document_ids[-1]}, and must go from "
            raise damaged_rows(self._folder / "document_ids.npy", f"{what}{ends[0]} to {ends[1]}")

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_documents(self) -> int:
        """Documents of this split."""
        return len(self._offsets) - 1

    def document(self, document_id: int) -> DocumentRecord:
        """Look up a document of this split.

        Raises:
            IndexError: the split has no document with this id.
        """
        row = int(document_id) - self._first_document
        if not 0 <= row < self.num_documents:
            last = self._first_document + self.num_documents - 1
            raise IndexError(f"document id {document_id} is not in this split: {self._first_document} to {last}")
        start, stop = self._offsets[row : row + 2].tolist()
        return DocumentRecord(*json.loads(self._records[start:stop].tobytes()))

    def release(self) -> None:
        """Release the mapped memory; reading maps it again."""
        for array in (self.tokens, self.lengths, self.num_bytes, self.document_ids):
            release_pages(array)
