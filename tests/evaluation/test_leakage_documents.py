"""Planted copies of documents are found with their exact similarity, and unrelated documents are not."""

import importlib.util
import json

import numpy as np
import pytest

from retroflow.corpus.tokenizer import train_tokenizer
from retroflow.errors import MissingExtraError
from retroflow.evaluation.near_duplicates import EDITED, NEAR, NearDuplicates, similar_documents, words_of
from tests.data.fakes import make_chunks

LENGTHS = [700, 900, 400, 650, 1000, 500]


def text_of(chunks, document):
    return chunks.tokens[chunks.document_ids == document].ravel()[: LENGTHS[document % len(LENGTHS)]]


def write(chunks, document, text):
    rows = chunks.document_ids == document
    padded = np.zeros(rows.sum() * chunks.chunk_length, dtype=np.uint16)
    padded[: len(text)] = text
    chunks.tokens[rows] = padded.reshape(-1, chunks.chunk_length)


def literal(one, other, n=13):
    sets = [{tuple(text[i : i + n]) for i in range(len(text) - n + 1)} for text in (one.tolist(), other.tolist())]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.fixture
def corpora():
    """Six evaluated documents of which the first four are copies of training documents, with edits."""
    generator = np.random.default_rng(3)
    train = make_chunks(LENGTHS, chunk_length=64, vocabulary_size=20_000, seed=1)
    valid = make_chunks(LENGTHS, chunk_length=64, vocabulary_size=20_000, first_document=6, seed=2)
    for document, share in enumerate((0.0, 0.05, 0.05, 0.3)):
        text = text_of(train, document).copy()
        count = int(share * len(text))
        if document == 1:
            text[100 : 100 + count] = generator.integers(1, 20_000, count)  # one passage was rewritten
        else:
            text[generator.permutation(len(text))[:count]] = generator.integers(1, 20_000, count)  # words all over
        write(valid, 6 + document, text)
    return valid, train


def test_planted_copies_are_found_and_others_are_not(corpora):
    pytest.importorskip("datasketch")
    valid, train = corpora
    steps = []
    count, pairs = similar_documents(valid, None, train, advance=steps.append)
    assert count == 6 and sum(steps) == len(valid) + len(train)
    assert [(pair.document, pair.other) for pair in pairs] == [("6", "0"), ("7", "1"), ("8", "2")]
    for own, pair in enumerate(pairs):
        assert pair.similarity == literal(text_of(valid, 6 + own), text_of(train, own))
        assert pair.edited_similarity == literal(text_of(valid, 6 + own), text_of(train, own), 5)
    assert pairs[0].similarity == 1.0 and pairs[1].similarity >= NEAR > pairs[2].similarity
    assert pairs[2].edited_similarity >= EDITED
    assert similar_documents(valid, None, train) == (count, pairs)
    assert similar_documents(valid, np.flatnonzero(valid.document_ids == 7)[:1], train) == (1, pairs[1:2])

    found = NearDuplicates(count, {"training text": pairs, "database": []}, NearDuplicates(9, {"database": pairs[:1]}))
    assert (
        "of the 6 evaluated documents: 2 in the training text (1 more are edited copies), 0 in the" in found.statement
    )
    assert found.statement.endswith("; of the 9 training documents: 1 in the database (0 more are edited copies).")
    listed = json.loads(json.dumps(found.to_json()))["with"]["training text"]
    assert (listed["near"], listed["edited"], len(listed["pairs"])) == (2, 1, 3)


def test_all_near_duplicates_of_a_document_are_found(corpora):
    pytest.importorskip("datasketch")
    valid, train = corpora
    for document in (2, 4):
        write(train, document, text_of(valid, 6)[: LENGTHS[document]])
    _, pairs = similar_documents(valid, None, train)
    assert [pair.other for pair in pairs if pair.document == "6"] == ["0", "4", "2"]  # 700, 700 and 400 of 700 tokens
    counted = NearDuplicates(6, {"database": pairs}).statement
    assert "2 in the database (0 more are edited copies)" in counted  # of documents, not of pairs


def test_another_edition_is_a_near_duplicate():
    """It has other line breaks, quotation marks, capitals and italics, so hardly a run of 13 tokens in common."""
    pytest.importorskip("datasketch")
    generator = np.random.default_rng(5)
    letters = [generator.choice(list("abcdefghij"), 5) for _ in range(300)]
    words = ["".join(word) for word in letters]
    plain = "".join(f'"{word}" ' if place % 7 == 0 else f"{word} " for place, word in enumerate(words))
    other = "".join(
        f"\u201c{word.upper()}\u201d\n" if place % 7 == 0 else f"_{word}_  " for place, word in enumerate(words)
    )
    tokenizer = train_tokenizer([plain, other], 400)
    one, edition = (chunks_of(tokenizer.encode(text).ids, document) for document, text in enumerate((plain, other)))
    assert similar_documents(one, None, edition) == (1, [])
    _, (pair,) = similar_documents(one, None, edition, words=words_of(tokenizer))
    assert (pair.similarity, pair.edited_similarity) == (1.0, 1.0)


def test_scripts_without_spaces_and_texts_without_words_have_shingles_too():
    text = "\u96e8\u304c\u964d\u308b " * 9 + "\uff21bc"
    tokenizer = train_tokenizer([text], 300)
    words = words_of(tokenizer)
    assert len(words(tokenizer.encode(text).ids)) == 4 * 9 + 1
    assert words(tokenizer.encode("\uff21bc").ids) == words(tokenizer.encode("aBC").ids)
    assert len(words(tokenizer.encode("+ + \u2014").ids)) > 3


def chunks_of(tokens, document):
    """A document as chunks in memory."""
    chunks = make_chunks([len(tokens)], chunk_length=64, first_document=document)
    flat = chunks.tokens.reshape(-1)
    flat[: len(tokens)] = tokens
    return chunks


def test_another_version_of_the_same_document_is_no_near_duplicate(corpora):
    pytest.importorskip("datasketch")
    valid, _ = corpora
    assert similar_documents(valid, None, valid) == (6, [])
    write(valid, 6, text_of(valid, 7)[:700])  # but a copy of another evaluated one is
    assert {(pair.document, pair.other) for pair in similar_documents(valid, None, valid)[1]} == {
        ("6", "7"),
        ("7", "6"),
    }


def test_a_missing_library_is_named(corpora, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "retroflow\[eval\]"'):
        similar_documents(corpora[0], None, corpora[1])
