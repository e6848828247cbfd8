"""The interface of live retrieval.

Shapes: q queries, k neighbours, m tokens of a chunk, r = 2m tokens of a neighbour with its continuation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from retroflow.errors import RetrieverError
from retroflow.protocols import Int64Array


@dataclass(frozen=True)
class Source:
    """One retrieved chunk with its origin.

    Attributes:
        document: id of its document.
        title, source: of the document, empty if the corpus had none.
        text: the chunk and its continuation.
        score: the retriever's, higher is better (`Capabilities.metric` defines it).
        chunk: its row in the database.
    """

    document: str
    title: str
    source: str
    text: str
    score: float
    chunk: int


class Retrieved(NamedTuple):
    """The answer to q queries.

    Attributes:
        tokens: int64 [q, k, r], each neighbour followed by its continuation.
        mask: bool [q, k, r], True where a token was retrieved.
        sources: for each query its neighbours, best first; fewer than k if fewer exist.
    """

    tokens: Int64Array
    mask: NDArray[np.bool_]
    sources: Sequence[Sequence[Source]]


class LiveRetriever(Protocol):
    """Finds neighbours for new text. `RetrievalDatabase` is one."""

    def retrieve(self, queries: Sequence[Sequence[int]], num_neighbours: int) -> Retrieved:
        """Find the neighbours of windows.

        Args:
            queries: the tokens of one window each, 1 to m of them, without padding.
            num_neighbours: k.

        Returns:
            Tokens and mask [q, k, r] and sources, in the order of the queries; unused neighbours are masked.
        """
        ...


def retrieve(
    retriever: LiveRetriever, queries: Sequence[Sequence[int]], num_neighbours: int, retrieved_length: int
) -> Retrieved:
    """Look up windows, and check the shape of what was found.

    Args:
        retriever: is called once.
        queries: as in `LiveRetriever.retrieve`, at least one.
        num_neighbours: k.
        retrieved_length: r.

    Raises:
        RetrieverError: the answer has other shapes.
    """
    found = retriever.retrieve(queries, num_neighbours)
    shape = (len(queries), num_neighbours, retrieved_length)
    given = (found.tokens.shape, found.mask.shape, len(found.sources))
    if given != (shape, shape, len(queries)):
        raise RetrieverError(
            f"generate: {type(retriever).__name__}.retrieve gave tokens {list(given[0])}, mask {list(given[1])} and "
            f"{given[2]} lists of sources; {list(shape)} twice and {len(queries)} are needed (queries, neighbours, "
            "tokens of a neighbour with its continuation)."
        )
    return found


@dataclass(frozen=True)
class Retrieval:
    """One retrieval of one row.

    Attributes:
        end: number of known tokens of the row, prompt included; the last of them is the first to read the neighbours.
        query: text of the window.
        sources: the neighbours, best first.
    """

    end: int
    query: str
    sources: tuple[Source, ...]
