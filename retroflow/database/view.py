"""The documents and chunks of a version, in an order that does not depend on its history.

Documents are ordered by id, and chunks by document and place. So chunk 17 is the same text in any two databases with
the same documents, and equal scores are ordered alike.

Shapes: N chunks of the version, m tokens of a chunk, d documents, n chunks of a segment.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.protocols import Int64Array
from retroflow.store.segment import Segment, StoredDocument


@dataclass(frozen=True)
class Rows:
    """Rows of all segments as one array, in the order of the view; read by numpy's indexing, never as a whole.

    Attributes:
        shape: as of an array.
        dtype: of the segments' arrays.
        read: gives the rows of flat int64 [r].
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[Int64Array], NDArray[Any]]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        wanted = np.arange(len(self))[index] if isinstance(index, slice) else np.asarray(index, dtype=np.int64)
        return self.read(wanted.reshape(-1)).reshape((*wanted.shape, *self.shape[1:]))


class View:
    """The live documents of segments and their chunks; the reading side of a `ChunkStore`.

    Args:
        segments: of the version.
        dead: int64, removed documents of each, ascending.
        chunk_length: m.
        vocabulary_size: one more than the largest token.
        end_of_text: the padding token.

    Attributes:
        ids: of the documents, ascending; the place of one is its number.
        starts: int64 [d + 1], the first chunk of each document, and N.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        dead: Sequence[Int64Array],
        *,
        chunk_length: int,
        vocabulary_size: int,
        end_of_text: int,
    ) -> None:
        self.chunk_length, self.vocabulary_size, self.end_of_text = chunk_length, vocabulary_size, end_of_text
        self._segments = segments
        found: list[tuple[str, int, int]] = []
        for number, segment in enumerate(segments):
            ids = [document.id for document in segment.documents()]
            alive = np.setdiff1d(np.arange(len(ids)), dead[number], assume_unique=True).tolist()
            found += [(ids[place], number, place) for place in alive]
        found.sort()
        self.ids = [id for id, _, _ in found]
        self._segment_of = np.array([number for _, number, _ in found], dtype=np.int64)
        self._place_of = np.array([place for _, _, place in found], dtype=np.int64)
        first, counts = np.zeros(len(found), np.int64), np.zeros(len(found), np.int64)
        for number, segment in enumerate(segments):
            own = self._segment_of == number
            first[own] = segment.starts[self._place_of[own]]
            counts[own] = segment.starts[self._place_of[own] + 1] - first[own]
        self._first = first
        self.starts = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def num_documents(self) -> int:
        """Documents of the version."""
        return len(self.ids)

    @cached_property
    def tokens(self) -> Rows:
        """As of `Segment`, [N, m]."""
        return self._rows("tokens", np.uint32 if self.vocabulary_size > 1 << 16 else np.uint16, self.chunk_length)

    @cached_property
    def lengths(self) -> Rows:
        """As of `Segment`, [N]."""
        return self._rows("lengths", np.uint16)

    @cached_property
    def num_bytes(self) -> Rows:
        """As of `Segment`, [N]."""
        return self._rows("num_bytes", np.uint32)

    def embeddings(self, dimension: int) -> Rows:
        """As of `Segment`, [N, D]."""
        return self._rows("embeddings", np.float16, dimension)

    @cached_property
    def document_ids(self) -> Rows:
        """Number of each chunk's document, int64 [N]."""
        return Rows((len(self),), np.dtype(np.int64), self._documents_of)

    def number(self, id: str) -> int | None:
        """Return the number of the document with this id, None if there is none."""
        place = bisect.bisect_left(self.ids, id)
        return place if place < len(self.ids) and self.ids[place] == id else None

    def document(self, number: int) -> StoredDocument:
        """Return the record of a document by its number."""
        return self._segments[int(self._segment_of[number])].document(int(self._place_of[number]))

    def chunks_of(self, number: int) -> Int64Array:
        """Return the chunks of a document by its number."""
        return np.arange(self.starts[number], self.starts[number + 1])

    def places_in(self, segment: int, documents: Int64Array) -> Int64Array:
        """Return the numbers inside a segment of those of some documents that are in it, ascending."""
        own: Int64Array = self._place_of[documents[self._segment_of[documents] == segment]]
        return np.sort(own)

    def by_place(self, segment: int, records: Mapping[int, StoredDocument]) -> dict[int, StoredDocument]:
        """Return those of some records, by document, that are in a segment, by their places in it."""
        own = [number for number in records if self._segment_of[number] == segment]
        return {int(self._place_of[number]): records[number] for number in own}

    def in_segments(self, segments: Sequence[int]) -> Int64Array:
        """Return the numbers of the documents that are in some segments."""
        return np.flatnonzero(np.isin(self._segment_of, segments))

    def release(self) -> None:
        """Release the mapped memory; reading maps it again."""
        for segment in self._segments:
            segment.release()

    @cached_property
    def numbers_in(self) -> list[Int64Array]:
        """For each segment int64 [n]: the number of every chunk in this view, -1 if its document is removed."""
        found = []
        for number, segment in enumerate(self._segments):
            own = np.flatnonzero(self._segment_of == number)
            numbers = np.full(len(segment), -1, dtype=np.int64)
            counts = self.starts[own + 1] - self.starts[own]
            offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            numbers[np.repeat(self._first[own], counts) + offsets] = np.repeat(self.starts[own], counts) + offsets
            found.append(numbers)
        return found

    def _rows(self, name: str, dtype: Any, *width: int) -> Rows:
        arrays = [getattr(segment, name) for segment in self._segments]

        def read(chunks: Int64Array) -> NDArray[Any]:
            found = np.empty((len(chunks), *width), dtype=dtype)
            documents = self._documents_of(chunks)
            rows = self._first[documents] + chunks - self.starts[documents]
            segments = self._segment_of[documents]
            for number in np.unique(segments).tolist():
                own = segments == number
                found[own] = arrays[number][rows[own]]
            return found

        return Rows((len(self), *width), np.dtype(dtype), read)

    def _documents_of(self, chunks: Int64Array) -> Int64Array:
        return np.searchsorted(self.starts, chunks, side="right") - 1
