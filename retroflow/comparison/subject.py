"""What is compared: a model with its weights, a text, and the neighbours found for it.

Shapes: N chunks of the text, l chunks of a sequence, m tokens of a chunk, n = l * m, k neighbours, S sequences.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from retroflow.comparison.row_options import RowOptions
from retroflow.console import progress
from retroflow.data import Batch
from retroflow.data.windows import WindowTable
from retroflow.database.snapshot import Snapshot
from retroflow.embedding.checked import CheckedEmbedder
from retroflow.errors import UsageError
from retroflow.pipeline.lookups import LiveSearch, look_up
from retroflow.pipeline.splits import Splits
from retroflow.planning.placement import Placement
from retroflow.protocols import Int64Array, VectorSource

Table = Int64Array | WindowTable | None
"""What is read: neighbours int64 [N, k] of the chunks, those of windows, or nothing."""


@dataclass(frozen=True)
class Subject:
    """A model and the data to compare it on.

    Attributes:
        model: a `RetrievalModel` on its device, in evaluation mode.
        placement: device and precision.
        splits: the text as the validation split, its neighbours, and the database.
        sequences: int64 [S], ascending, those that are compared.
        seed: of whatever is drawn.
        batch_size: sequences of a batch.
        step: tokens between two lookups; None for a chunk's.
        search: opens the database, to search it with tokens; None if nothing is retrieved.
        reads: whether the model reads neighbours.
        check: may raise to stop; to be called now and then in long work.
        options: sizes of rows.
        looked_up_all: whether all chunks of the text have their neighbours, not only those of the compared sequences.
        vectors: opens the vectors of the database's chunks; None if it has none.
    """

    model: Any
    placement: Placement
    splits: Splits
    sequences: Int64Array
    seed: int
    batch_size: int
    step: int | None
    search: Callable[[], LiveSearch] | None
    reads: bool
    check: Callable[[], None]
    options: RowOptions = field(default_factory=RowOptions)
    looked_up_all: bool = True
    vectors: Callable[[], VectorSource] | None = None

    @property
    def gives_states(self) -> bool:
        """Whether the model gives its last states, which long prompts and kNN-LM need."""
        try:
            self.model.output_weights()
        except UsageError:
            return False
        return True

    @property
    def sequence_length(self) -> int:
        """Tokens of a sequence, n; the text's last one may have fewer."""
        return self.splits.sequence_chunks * self.splits.valid_chunks.chunk_length

    @cached_property
    def found(self) -> Int64Array | WindowTable:
        """The neighbours that the model reads; windows are looked up once, when they are first needed."""
        found = self.splits.validation_neighbours
        if self.step is None or self.search is None:
            return found
        m = self.splits.valid_chunks.chunk_length
        windows = len(self.sequences) * ((self.splits.sequence_chunks - 1) * m // self.step + 1)
        search = self.search()
        with progress(f"looking up every {self.step} tokens", windows, "windows") as shown:

            def advance(count: int) -> None:
                self.check()
                shown(count)

            return look_up(search, self.splits, self.sequences, step=self.step, k=found.shape[1], advance=advance)

    def looking_up(self, *, step: int, k: int, query_tokens: int | None = None) -> Callable[[Int64Array], WindowTable]:
        """Return a function that looks sequences int64 [b] up; arguments as of `look_up`."""
        assert self.search is not None
        search = self.search()

        def found(sequences: Int64Array) -> WindowTable:
            return look_up(
                search,
                self.splits,
                sequences,
                step=step,
                k=k,
                advance=lambda windows: self.check(),
                query_tokens=query_tokens,
            )

        return found

    @property
    def chunks(self) -> Int64Array:
        """The chunks of the compared sequences, int64 [c], ascending."""
        length = self.splits.sequence_chunks
        chunks = (self.sequences[:, None] * length + np.arange(length)).ravel()
        return chunks[chunks < len(self.splits.valid_chunks)]

    def batch(self, sequences: Int64Array, table: Table) -> Batch:
        """Return some sequences of the same length with what is read.

        Args:
            sequences: int64 [b], ascending.
            table: what is read.
        """
        starts = sequences * self.splits.sequence_chunks
        length = min(self.splits.sequence_chunks, len(self.splits.valid_chunks) - int(starts[-1]))
        return self.splits.validation(table).assemble(starts, length)


@dataclass(frozen=True)
class Embedded:
    """A database with vectors.

    Attributes:
        embedder: that made them.
        vectors: [T, D], of T chunks.
    """

    embedder: CheckedEmbedder
    vectors: VectorSource


def vectors_of(snapshot: Snapshot) -> Callable[[], VectorSource] | None:
    """Return a function that opens the vectors of a version of a database; None if it has none."""
    dimension = snapshot.identity.dimension
    return None if dimension is None else partial(snapshot.view.embeddings, dimension)


def without_vectors(snapshot: Snapshot) -> str:
    """Return the complaint about a database without vectors."""
    return (
        f'"{snapshot.folder}": it has no vectors, which this retriever or its recall needs; build it with a retriever '
        "that reads vectors, such as retriever.name=exact."
    )


class Plan(Protocol):
    """A comparison that was checked, of which nothing large is read yet."""

    @property
    def definition(self) -> dict[str, Any]:
        """JSON values: fingerprints of all that the numbers depend on, but for the rows."""
        ...

    @property
    def stated(self) -> dict[str, Any]:
        """JSON values for people: "model" and "database"."""
        ...

    @property
    def folder(self) -> Path:
        """The folder in which comparisons are kept."""
        ...

    @property
    def retriever(self) -> dict[str, Any]:
        """The section of the database's retriever: its name and options."""
        ...

    def embedded(self) -> Embedded:
        """Open or make vectors of the database, where its retriever needs none.

        Raises:
            UsageError: that is not possible.
        """
        ...

    def open(self, check: Callable[[], None]) -> Subject:
        """Read the data and build the model.

        Args:
            check: as in `Subject`.
        """
        ...


def evenly_spaced(count: int, wanted: int, seed: int) -> Int64Array:
    """Return ascending numbers below `count`, evenly spaced; the seed chooses the first. All if there are no more."""
    if wanted >= count:
        return np.arange(count, dtype=np.int64)
    offset = np.random.default_rng([seed, count]).random()
    return ((np.arange(wanted) + offset) * count / wanted).astype(np.int64)
