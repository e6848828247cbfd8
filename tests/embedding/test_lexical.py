"""LexicalEmbedder: the contract, and what is its own."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from retroflow.embedding.lexical import LexicalEmbedder
from retroflow.errors import DamagedDataError, UsageError
from retroflow.testing.embedder_contract import EmbedderContract


class TestLexicalEmbedder(EmbedderContract):
    def make_embedder(self) -> LexicalEmbedder:
        return LexicalEmbedder(dimension=128, buckets=4096)

    def make_other_embedder(self) -> LexicalEmbedder:
        return LexicalEmbedder(dimension=128, buckets=4096, seed=1)


def test_every_vector_has_length_one() -> None:
    vectors = LexicalEmbedder().embed(["a b", "", "\n", "def f(): pass"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)


def test_rare_words_count_more_than_frequent_ones_after_fit() -> None:
    embedder = LexicalEmbedder(word_ngrams=1, character_ngram=0, dimension=1024)
    frequent_rare, frequent, rare = "the quokka", "the", "quokka"
    before = embedder.embed([frequent_rare, frequent, rare])
    embedder.fit(["the"] * 500 + ["quokka"])
    after = embedder.embed([frequent_rare, frequent, rare])
    assert abs(before[0] @ before[1] - before[0] @ before[2]) < 0.05
    assert after[0] @ after[2] > after[0] @ after[1] + 0.5


def test_ascii_case_is_folded_and_word_order_is_seen_by_pairs() -> None:
    embedder = LexicalEmbedder(character_ngram=0)
    vectors = embedder.embed(["Self Attention", "self attention", "attention self"])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert vectors[0] @ vectors[2] < 0.9


def test_words_of_one_text_do_not_reach_into_the_next() -> None:
    embedder = LexicalEmbedder(word_ngrams=3, character_ngram=7)
    texts = ["alpha beta", "gamma", "", "delta epsilon zeta"]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_fit_streams_and_counts_texts_not_occurrences() -> None:
    once, often = LexicalEmbedder(buckets=64), LexicalEmbedder(buckets=64)
    once.fit(text for text in ["alpha", "beta"])
    often.fit(text for text in ["alpha alpha alpha", "beta"])
    texts = ["alpha"]
    np.testing.assert_allclose(once.embed(texts) @ often.embed(texts).T, 1.0, atol=0.05)


def test_a_flipped_byte_in_the_state_is_found(tmp_path: Path) -> None:
    embedder = LexicalEmbedder(buckets=64)
    embedder.fit(["a b c"])
    embedder.save(tmp_path)
    path = tmp_path / "document_frequencies.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedDataError, match=r"document_frequencies\.npy.*Prepare it again"):
        LexicalEmbedder(buckets=64).load(tmp_path)


def test_a_missing_state_is_damaged_data(tmp_path: Path) -> None:
    with pytest.raises(DamagedDataError, match="not the state of a lexical embedder"):
        LexicalEmbedder().load(tmp_path)


def test_a_state_of_other_options_is_refused(tmp_path: Path) -> None:
    LexicalEmbedder(buckets=64).save(tmp_path)
    with pytest.raises(UsageError, match="'seed': 5"):
        LexicalEmbedder(buckets=64, seed=5).load(tmp_path)


def test_no_terms_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="no text has a term"):
        LexicalEmbedder(word_ngrams=0, character_ngram=0)


def test_memory_follows_a_block_of_text_and_not_the_number_of_long_texts() -> None:
    embedder = LexicalEmbedder(dimension=16, buckets=1024)
    texts = [f"text {number} " * 10_000 for number in range(40)]  # 4 MB
    tracemalloc.start()
    try:
        vectors = embedder.embed(texts)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    assert np.array_equal(vectors[-1:], embedder.embed(texts[-1:]))
