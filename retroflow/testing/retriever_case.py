"""What the rules of RetrieverContract work with: vectors, queries, and retrievers made from them.

Shapes: q queries, N vectors, D embedding width, k neighbours.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pytest

from retroflow.errors import UsageError
from retroflow.protocols import Float32Array, Neighbours, Retriever
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.testing.case import Case
from retroflow.testing.clustered import clustered_vectors
from retroflow.testing.retriever_inputs import read_only
from retroflow.testing.rule_process import RuleProcess

OWNER = "the retriever under test"
NUM_QUERIES = 50


class Suite(Protocol):
    """What a subclass of RetrieverContract says."""

    recall_floor: ClassVar[float]
    score_tolerance: ClassVar[float]
    dimension: ClassVar[int]
    num_vectors: ClassVar[int]
    seconds: ClassVar[float]

    def make_retriever(self) -> Retriever: ...
    def make_retriever_searching_differently(self) -> Retriever | None: ...
    def embeddings(self) -> Float32Array: ...


class RetrieverCase(Case):
    """One suite at work in one process. Nothing here looks inside a retriever: CheckedRetriever is in between.

    Args:
        suite: an instance of the author's subclass.
        folder: an empty folder for files.
        elsewhere: another process, with another PYTHONHASHSEED and another current folder.
    """

    def __init__(self, suite: Suite, folder: Path, elsewhere: RuleProcess | None = None) -> None:
        super().__init__(suite, folder, elsewhere)
        self.suite = suite

    @cached_property
    def vectors(self) -> Float32Array:
        """The vectors [N, D] that `built` holds, of length 1; read-only, as an embedding store's are."""
        return read_only(clustered_vectors(self.suite.num_vectors, self.suite.dimension))

    @cached_property
    def queries(self) -> Float32Array:
        """Queries [50, D] from the same clusters."""
        return clustered_vectors(len(self.vectors) + NUM_QUERIES, self.suite.dimension)[len(self.vectors) :]

    @cached_property
    def built(self) -> CheckedRetriever:
        """A retriever built over `vectors`; the rules only search and save it."""
        return self.build(self.vectors)

    @property
    def metric(self) -> str:
        """What scores mean, "l2" or "inner_product"."""
        return self.new().capabilities.metric

    def new(self) -> CheckedRetriever:
        """A retriever without an index."""
        return CheckedRetriever(self.suite.make_retriever(), owner=OWNER)

    def build(self, vectors: Any) -> CheckedRetriever:
        """A new retriever, built over vectors [N, D]."""
        retriever = self.new()
        retriever.build(vectors)
        return retriever

    def build_or_skip(self, vectors: Any) -> CheckedRetriever:
        """As `build`, for so few vectors that a retriever may refuse them by a UsageError."""
        try:
            return self.build(vectors)
        except UsageError as error:
            pytest.skip(f"refuses to build over {len(vectors)} vectors: {error}")

    def opened(self, folder: Path) -> CheckedRetriever:
        """A new retriever, loaded from folder."""
        retriever = self.new()
        retriever.load(folder)
        return retriever


def write_answer(answer: Neighbours, path: Path) -> None:
    """Write an answer for the process that asked."""
    np.savez(path, ids=answer.ids, scores=answer.scores)


def read_answer(path: Path) -> Neighbours:
    """Read what `write_answer` wrote."""
    with np.load(path) as file:
        return Neighbours(file["ids"], file["scores"])
