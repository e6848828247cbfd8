"""A segment of a database: the chunks, the documents and the embeddings of one change. It never changes itself.

Shapes: n chunks of the segment, m tokens of a chunk, d documents, D embedding width.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retroflow.errors import DamagedDataError
from retroflow.store.agreement import check_offsets, check_shapes
from retroflow.store.array_file import Array, map_array, release_pages
from retroflow.store.artifact import commit, open_artifact
from retroflow.store.atomic import sync_tree
from retroflow.store.chunk_store import DocumentRecord
from retroflow.store.hashing import describe_tree
from retroflow.store.manifest import Manifest, damaged
from retroflow.store.pieces import Pieces, discard_pieces, join_pieces, pieces_folder

SEGMENT = "segment"
INDEX = "index"
_SUMMED = ("starts", "record_offsets")


@dataclass(frozen=True)
class StoredDocument(DocumentRecord):
    """A document of a database, without its text.

    Attributes:
        sha256: of its text in UTF-8, hexadecimal.
    """

    sha256: str

    def to_bytes(self) -> bytes:
        """Return its record; records that follow one another are the inside of a JSON list, with a comma at the end."""
        return json.dumps([self.id, self.title, self.source, self.sha256]).encode() + b","


class Segment:
    """One segment, memory-mapped.

    Attributes:
        folder, manifest: its artifact.
        tokens: uint16 or uint32 [n, m]; the last chunk of a document is padded with the end-of-text token.
        lengths: uint16 [n], text tokens of each chunk.
        num_bytes: uint32 [n], UTF-8 bytes of each chunk's text.
        starts: int64 [d + 1], the first chunk of each document, and n.
        embeddings: float16 [n, D]; None if the database needs none.
        replaced: records that a version has in place of those in the segment, by the document's place.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.replaced: Mapping[int, StoredDocument] = {}
        info = manifest.info
        chunks, documents = int(info["chunks"]), int(info["documents"])
        shapes: dict[str, tuple[int, ...]] = {"tokens": (chunks, int(info["chunk_length"]))}
        shapes |= dict.fromkeys(("lengths", "num_bytes"), (chunks,)) | dict.fromkeys(_SUMMED, (documents + 1,))
        if info["dimension"] is not None:
            shapes["embeddings"] = (chunks, int(info["dimension"]))
        check_shapes(folder, manifest, {f"{name}.npy": shape for name, shape in shapes.items()})
        self.tokens: NDArray[np.unsignedinteger[Any]] = self._mapped("tokens")
        self.lengths: NDArray[np.uint16] = self._mapped("lengths")
        self.num_bytes: NDArray[np.uint32] = self._mapped("num_bytes")
        self.starts: NDArray[np.int64] = self._mapped("starts")
        self.embeddings: NDArray[np.float16] | None = self._mapped("embeddings") if "embeddings" in shapes else None
        self._records: NDArray[np.uint8] = self._mapped("records")
        self._offsets: NDArray[np.int64] = self._mapped("record_offsets")

    @classmethod
    def open(cls, folder: Path, content: str) -> Self:
        """Open a segment, checked (`retroflow.store.artifact.open_artifact`).

        Args:
            folder: of the segment.
            content: `Manifest.content` of the one that is meant.

        Raises:
            DamagedDataError: it is missing, or differs from what was written.
        """
        if not folder.is_dir():
            raise damaged(folder, "the folder is missing", folder)
        manifest = open_artifact(folder, kind=SEGMENT)
        if manifest.content != content:
            raise damaged(folder / "manifest.json", "it is not the segment that this version was made with", folder)
        return cls(folder, manifest)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_documents(self) -> int:
        """Documents, removed ones included."""
        return len(self.starts) - 1

    @property
    def index(self) -> Path | None:
        """Folder of the retriever's index over this segment, for `CheckedRetriever.load`; None if it has none."""
        return self.folder / INDEX if self.manifest.info["has_index"] else None

    def document(self, place: int) -> StoredDocument:
        """Read the record of a document by its place in the segment."""
        if place in self.replaced:
            return self.replaced[place]
        start, stop = self._offsets[place : place + 2].tolist()
        return StoredDocument(*json.loads(self._records[start : stop - 1].tobytes()))

    def documents(self) -> list[StoredDocument]:
        """Read every document's record.

        Raises:
            DamagedDataError: one cannot be read.
        """
        try:
            rows = json.loads(b"[" + self._records.tobytes()[:-1] + b"]")
            documents = [self.replaced.get(place) or StoredDocument(*row) for place, row in enumerate(rows)]
        except (ValueError, TypeError) as error:
            raise self._damaged("records", f"its records cannot be read ({error})") from error
        if len(documents) != self.num_documents:
            raise self._damaged("records", f"it has {len(documents)} records of {self.num_documents} documents")
        return documents

    def check_rows(self) -> None:
        """Check that arrays and records fit together; reads all of them but tokens and embeddings.

        Raises:
            DamagedDataError: they do not.
        """
        check_offsets(self.folder / "starts.npy", self.starts, len(self))
        check_offsets(self.folder / "record_offsets.npy", self._offsets, len(self._records))
        self.documents()
        lengths = np.asarray(self.lengths, dtype=np.int64)
        is_last = np.zeros(len(self), dtype=bool)
        is_last[self.starts[1:] - 1] = True
        if (lengths == 0).any() or (lengths[~is_last] != self.tokens.shape[1]).any():
            raise self._damaged("lengths", "a chunk ends before its document does")

    def release(self) -> None:
        """Release the mapped memory; reading maps it again."""
        for array in (self.tokens, self.lengths, self.num_bytes, self.embeddings):
            if array is not None:
                release_pages(array)

    def _mapped(self, name: str) -> NDArray[Any]:
        return map_array(self.folder, f"{name}.npy", self.manifest.files[f"{name}.npy"])

    def _damaged(self, name: str, what: str) -> DamagedDataError:
        return damaged(self.folder / f"{name}.npy", what, self.folder)


def write_segment(
    folder: Path,
    manifest: Manifest,
    blocks: Iterator[dict[str, Array]],
    save_index: Callable[[Segment, Path], bool],
) -> Segment | None:
    """Write a segment whole or not at all.

    Args:
        folder: of the segment; does not exist.
        manifest: its kind, inputs, and info except counts.
        blocks: rows of tokens, lengths, num_bytes and perhaps embeddings; bytes of records; `starts` holds the number
            of chunks of each document, `record_offsets` the length of each record.
        save_index: writes the retriever's index over the segment into an empty folder; returns whether it has.

    Returns:
        The segment, None if there was no document.
    """
    pieces = Pieces(pieces_folder(folder, {}))
    pieces.folder.mkdir(parents=True)
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir()
    count = 0
    for block in blocks:
        for name in _SUMMED if count == 0 else ():
            block[name] = np.concatenate([[0], block[name]])
        pieces.write(count, block)
        count += 1
    if not count:
        partial.rmdir()
        discard_pieces(folder)
        return None
    files = join_pieces(partial, pieces, [""] * count, _Sums())
    discard_pieces(folder)
    counts = {"chunks": files["lengths.npy"].shape[0], "documents": files["starts.npy"].shape[0] - 1}
    unfinished = _with(manifest, files, {**counts, "has_index": False})
    index = partial / INDEX
    index.mkdir()
    has_index = save_index(Segment(partial, unfinished), index)
    if has_index:
        sync_tree(index)
        files |= describe_tree(index, INDEX)
    else:
        index.rmdir()
    finished = _with(manifest, files, {**counts, "has_index": has_index})
    Segment(partial, finished).check_rows()
    commit(partial, finished, folder)
    return Segment(folder, finished)


def _with(manifest: Manifest, files: Mapping[str, Any], info: Mapping[str, Any]) -> Manifest:
    return Manifest(manifest.kind, manifest.inputs, info={**manifest.info, **info}, files=files)


class _Sums:
    """Turns counts and lengths of pieces that follow one another into offsets."""

    def __init__(self) -> None:
        self._last = dict.fromkeys(_SUMMED, 0)

    def __call__(self, arrays: dict[str, Array]) -> dict[str, Array]:
        summed = dict(arrays)
        for name in _SUMMED:
            summed[name] = self._last[name] + np.cumsum(arrays[name])
            self._last[name] = int(summed[name][-1])
        return summed
