"""What the rules of RetrieverContract work with: keys, queries, and retrievers made from them.

Shapes: q queries, N keys, D embedding width, k neighbours.
"""

import unittest
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.errors import UsageError
from retroflow.protocols import Float32Array, Neighbours
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.retrieval.keys import Keys
from retroflow.testing.case import Case
from retroflow.testing.clustered import clustered_texts, clustered_vectors
from retroflow.testing.retriever_rules.inputs import read_only

OWNER = "the retriever under test"
NUM_QUERIES = 50


class RetrieverCase(Case):
    """One suite at work in one process. Nothing here looks inside a retriever: CheckedRetriever is in between."""

    def make_keys(self, count: int, *, seed: int = 0, dimension: int | None = None) -> Any:
        """Draw keys of what the retriever reads, of which any rows can be taken.

        Returns:
            An array [count, D] of vectors of length 1, read-only as an embedding store's are, or `Keys` with texts.
        """
        capabilities = self.new().capabilities
        vectors = read_only(clustered_vectors(count, dimension or self.suite.dimension, seed=seed))
        if not capabilities.reads_texts:
            return vectors
        return Keys(vectors if capabilities.reads_vectors else None, clustered_texts(count, seed=seed))

    @cached_property
    def keys(self) -> Any:
        """The N keys that `built` holds."""
        return self.make_keys(self.suite.num_vectors)

    @cached_property
    def queries(self) -> Any:
        """Fifty queries from the same clusters."""
        return self.make_keys(len(self.keys) + NUM_QUERIES)[len(self.keys) :]

    def skip_unless_by_vectors(self) -> None:
        """Skip a rule about distances of vectors."""
        if self.new().capabilities.reads_texts or self.metric == "own":
            raise unittest.SkipTest("a rule about distances of vectors, by which this retriever does not search")

    def skip_unless_by_texts(self) -> None:
        """Skip a rule about texts without vectors."""
        if self.new().capabilities.queried_by != "texts":
            raise unittest.SkipTest("a rule about texts, by which alone this retriever does not search")

    @property
    def vectors(self) -> Float32Array:
        """The keys [N, D] of a retriever of vectors; the rule is skipped for any other."""
        self.skip_unless_by_vectors()
        vectors: Float32Array = self.keys
        return vectors

    @property
    def query_vectors(self) -> Float32Array:
        """The queries [50, D] of a retriever of vectors; the rule is skipped for any other."""
        self.skip_unless_by_vectors()
        vectors: Float32Array = self.queries
        return vectors

    @property
    def texts(self) -> list[str]:
        """The keys of a retriever of texts; the rule is skipped for any other."""
        self.skip_unless_by_texts()
        return list(self.keys.texts)

    @cached_property
    def built(self) -> CheckedRetriever:
        """A retriever built over `keys`; the rules only search and save it."""
        return self.build(self.keys)

    @property
    def metric(self) -> str:
        """What scores mean, "l2" or "inner_product"."""
        return self.new().capabilities.metric

    def new(self) -> CheckedRetriever:
        """A retriever without an index."""
        return CheckedRetriever(self.suite.make_retriever(), owner=OWNER)

    def build(self, keys: Any) -> CheckedRetriever:
        """A new retriever, built over keys, or over vectors or texts by themselves."""
        retriever = self.new()
        retriever.build(keys)
        return retriever

    def build_or_skip(self, keys: Any) -> CheckedRetriever:
        """As `build`, for so few keys that a retriever may refuse them by a UsageError."""
        try:
            return self.build(keys)
        except UsageError as error:
            raise unittest.SkipTest(f"refuses to build over {len(keys)} keys: {error}") from None

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
