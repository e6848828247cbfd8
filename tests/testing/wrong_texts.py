"""Retrievers of texts, and of texts and vectors, that are correct, and those that are wrong in one way each."""

from functools import cache
from hashlib import blake2b
from typing import Any

import numpy as np

from retroflow.protocols import Capabilities, KeySource, Neighbours, Queries
from tests.testing.right_retriever import Build, Right, Search, ranked


@cache
def vector_of(word: str) -> np.ndarray:
    return np.frombuffer(blake2b(word.encode(), digest_size=64).digest(), np.uint8).astype(np.float32) - 127.5


def vectors_of(texts: Any) -> np.ndarray:
    """Sums of a fixed random vector for each word: texts with words in common are near each other."""
    zero = np.zeros(64, np.float32)
    return np.array([sum((vector_of(word) for word in text.split()), zero) for text in texts]).reshape(-1, 64)


class RightOfTexts(Right):
    """Brute force over sums of word vectors."""

    def __init__(self, *, build: Build | None = None, search: Search | None = None) -> None:
        super().__init__(build=build, search=search)
        self.capabilities = Capabilities(metric="own", queried_by="texts", exact=True)

    def build(self, keys: KeySource) -> None:
        blocks = [vectors_of(keys.texts[start : start + 4_096]) for start in range(0, len(keys), 4_096)]
        self.build_vectors(np.concatenate(blocks))

    def search(self, queries: Queries, k: int) -> Neighbours:
        return self.search_vectors(vectors_of(queries.texts), k)


class RightOfBoth(Right):
    """Fuses two rankings by reciprocal ranks: a score that no single pair of query and key has."""

    def __init__(self, *, build: Build | None = None, search: Search | None = None) -> None:
        super().__init__(build=build, search=search)
        self.capabilities = Capabilities(metric="own", queried_by="both", exact=True)

    def build(self, keys: KeySource) -> None:
        blocks = [slice(start, start + 4_096) for start in range(0, len(keys), 4_096)]
        vectors = np.concatenate([keys.vectors[block] for block in blocks])
        self.build_vectors(np.hstack([np.concatenate([vectors_of(keys.texts[block]) for block in blocks]), vectors]))

    def search(self, queries: Queries, k: int) -> Neighbours:
        pairs = np.hstack([vectors_of(queries.texts), queries.vectors])
        fused = np.zeros((len(pairs), len(self.vectors)), np.float32)
        for columns in (slice(0, 64), slice(64, None)):
            products = pairs[:, columns] @ self.vectors[:, columns].T
            ranks = np.argsort(np.argsort(-products, axis=1, kind="stable"), axis=1, kind="stable")
            fused += np.float32(1.0) / (60 + ranks).astype(np.float32)
        return ranked(fused, k)


class ReadsAllTextsAtOnce(RightOfTexts):
    def build(self, keys: KeySource) -> None:
        self.build_vectors(vectors_of(keys.texts[0 : len(keys)]))


class ReadsTheFirstTextsOnly(RightOfTexts):
    def build(self, keys: KeySource) -> None:
        super().build(keys)
        self.vectors = self.vectors[:65_536]


class NoEmptyText(RightOfTexts):
    def search(self, queries: Queries, k: int) -> Neighbours:
        if not all(text.strip() for text in queries.texts):
            raise ValueError("an empty query")
        return super().search(queries, k)


class NoFewTexts(RightOfTexts):
    def search(self, queries: Queries, k: int) -> Neighbours:
        answer = super().search(queries, k)
        if len(self.vectors) < 3:
            answer.ids[:], answer.scores[:] = -1, -np.inf
        return answer


class LosesTheBestOfMany(RightOfTexts):
    def search_vectors(self, queries: np.ndarray, k: int) -> Neighbours:
        ids, scores = super().search_vectors(queries, k + 1)
        if 1 < k < len(self.vectors):
            return Neighbours(ids[:, 1:], scores[:, 1:])
        return Neighbours(ids[:, :k], scores[:, :k])


class ReadsVectorsItDoesNotDeclare(RightOfTexts):
    def build(self, keys: KeySource) -> None:
        self.build_vectors(keys.vectors)
