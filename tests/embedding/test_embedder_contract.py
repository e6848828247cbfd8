"""The contract fails embedders that break it: each rule against an embedder that breaks just that rule."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retroflow.embedding.lexical import LexicalEmbedder
from retroflow.testing import EmbedderContract

Vectors = np.ndarray


class Broken(LexicalEmbedder):
    """A lexical embedder whose answer is changed on the way out."""

    def __init__(self, change: Callable[[Vectors, list[str], int], Vectors]) -> None:
        super().__init__(dimension=64, buckets=1024)
        self._change = change
        self._calls = 0

    def embed(self, texts: list[str]) -> Vectors:
        self._calls += 1
        return self._change(super().embed(texts), texts, self._calls)


def spoil_unusual(vectors: Vectors, texts: list[str], calls: int) -> Vectors:
    vectors[[row for row, text in enumerate(texts) if not text]] = np.nan
    return vectors


BREACHES = [
    ("test_embed_returns_float32_rows_of_the_stated_dimension", lambda vectors, texts, calls: vectors.astype(float)),
    ("test_embed_returns_float32_rows_of_the_stated_dimension", lambda vectors, texts, calls: vectors[:, :-1]),
    ("test_rows_keep_the_order_of_the_texts", lambda vectors, texts, calls: vectors[np.argsort(vectors[:, 0])]),
    ("test_a_text_alone_gets_the_vector_it_gets_in_a_batch", lambda vectors, texts, calls: vectors - vectors.mean(0)),
    ("test_the_same_call_gives_the_same_bytes", lambda vectors, texts, calls: vectors + np.float32(1e-6 * calls)),
    (
        "test_equal_texts_get_equal_vectors_and_different_texts_different_ones",
        lambda vectors, texts, calls: np.zeros_like(vectors),
    ),
]


@pytest.mark.parametrize(("rule", "change"), BREACHES)
def test_an_embedder_that_breaks_a_rule_fails_it(rule: str, change: Callable[..., Vectors]) -> None:
    with pytest.raises(AssertionError):
        getattr(EmbedderContract(), rule)(Broken(change))
    getattr(EmbedderContract(), rule)(LexicalEmbedder(dimension=64, buckets=1024))


def test_a_vector_that_is_not_finite_fails() -> None:
    with pytest.raises(AssertionError):
        EmbedderContract().test_an_unusual_text_gets_a_finite_vector(Broken(spoil_unusual), "")


class ForgetfulSuite(EmbedderContract):
    """Its embedder learns document frequencies and does not save them."""

    __test__ = False

    def make_embedder(self) -> LexicalEmbedder:
        return Forgetful(dimension=64, buckets=1024)


class Forgetful(LexicalEmbedder):
    def load(self, folder: Path) -> None:
        """Read nothing."""


def test_an_embedder_that_forgets_what_it_learned_fails(tmp_path: Path) -> None:
    suite = ForgetfulSuite()
    embedder = suite.make_embedder()
    embedder.fit(["states of the hidden", "hidden states", "states", "the chunk"] * 50)
    with pytest.raises(AssertionError):
        suite.test_a_saved_embedder_embeds_alike_in_a_new_process(embedder, tmp_path)


def test_a_suite_without_make_embedder_says_so() -> None:
    with pytest.raises(NotImplementedError, match="override make_embedder"):
        EmbedderContract().make_embedder()
