"""Chunks: concatenated they are the document's tokens, and their bytes are the document's bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retroflow.corpus.chunking import chunk_document
from retroflow.corpus.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["the cat sat on the mat, the hat and the bat"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


@settings(deadline=None, max_examples=50)
@given(text=st.text(max_size=200), chunk_length=st.integers(1, 20))
def test_chunks_are_the_document_and_nothing_else(tokenizer: Tokenizer, text: str, chunk_length: int) -> None:
    encoded = tokenizer.encode(text)
    chunks = chunk_document(encoded, chunk_length=chunk_length, end_of_text=tokenizer.end_of_text)
    assert chunks.tokens.shape == (-(-len(encoded.ids) // chunk_length), chunk_length)
    real = [row[:length] for row, length in zip(chunks.tokens, chunks.lengths, strict=True)]
    assert np.array_equal(np.concatenate([*real, np.empty(0, np.int32)]), encoded.ids)
    assert all((row[length:] == tokenizer.end_of_text).all() for row, length in zip(*chunks[:2], strict=True))
    assert (chunks.lengths[:-1] == chunk_length).all()
    assert int(chunks.num_bytes.sum()) == len(text.encode())


def test_bytes_are_those_of_the_chunk_s_text(tokenizer: Tokenizer) -> None:
    text = "the cat sat on the mat, the hat"
    encoded = tokenizer.encode(text)
    chunks = chunk_document(encoded, chunk_length=4, end_of_text=tokenizer.end_of_text)
    for row, length, num_bytes in zip(*chunks, strict=True):
        assert len(tokenizer.decode(row[:length])) == num_bytes


def test_dtypes_and_the_empty_document(tokenizer: Tokenizer) -> None:
    chunks = chunk_document(tokenizer.encode(""), chunk_length=64, end_of_text=0)
    assert chunks.tokens.shape == (0, 64)
    assert [array.dtype for array in chunks] == [np.int32, np.uint16, np.uint32]
