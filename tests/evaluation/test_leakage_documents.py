"""Planted copies of documents are found with their exact similarity, and unrelated documents are not."""

import importlib.util
import json

import numpy as np
import pytest

from retroflow.errors import MissingExtraError
from retroflow.evaluation.near_duplicates import EDITED, NEAR, NearDuplicates, similar_documents
from tests.data.fakes import make_chunks

LENGTHS = [700, 900, 400, 650, 1000, 500]


def text_of(chunks, document):
    return chunks.tokens[chunks.document_ids == document].ravel()[: LENGTHS[document % len(LENGTHS)]]


def write(chunks, document, text):
    rows = chunks.document_ids == document
    padded = np.zeros(rows.sum() * chunks.chunk_length, dtype=np.uint16)
    padded[: len(text)] = text
    chunks.tokens[rows] = padded.reshape(-1, chunks.chunk_length)


def literal(one, other):
    sets = [{tuple(text[i : i + 13]) for i in range(len(text) - 12)} for text in (one.tolist(), other.tolist())]
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
    assert pairs[0].similarity == 1.0 and pairs[1].similarity >= NEAR > pairs[2].similarity >= EDITED
    assert similar_documents(valid, None, train) == (count, pairs)
    assert similar_documents(valid, np.flatnonzero(valid.document_ids == 7)[:1], train) == (1, pairs[1:2])

    found = NearDuplicates(count, {"training text": pairs, "database": []})
    assert (
        "of the 6 evaluated documents: 2 in the training text (1 more are edited copies), 0 in the" in found.statement
    )
    listed = json.loads(json.dumps(found.to_json()))["with"]["training text"]
    assert (listed["near"], listed["edited"], len(listed["pairs"])) == (2, 1, 3)


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
