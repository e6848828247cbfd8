"""Topic-matched neighbours are another document's, of the same topic."""

import numpy as np
import pytest

from retroflow.data.windows import WindowTable
from retroflow.evaluation.attribution import shuffled
from retroflow.evaluation.topics import Topics, topic_matched, topic_matched_windows, topics_of
from tests.data.fakes import make_chunks

TOPICS, DOCUMENTS = 4, 8
WORDS = 30


def chunks_about_topics(lengths):
    """Documents of so many tokens; those of one topic, every fourth, share their words."""
    chunks = make_chunks(lengths, first_document=100)
    generator = np.random.default_rng(3)
    topic = (chunks.document_ids - 100) % TOPICS
    for row, length in enumerate(chunks.lengths):
        chunks.tokens[row, :length] = 1 + topic[row] * WORDS + generator.integers(WORDS, size=length)
    return chunks


def found_for(chunks, k=2):
    return np.arange(len(chunks) * k).reshape(-1, k)  # all different, so that rows tell whose they are


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("embedded", [False, True])
def test_every_chunk_gets_what_was_found_for_another_document_of_its_topic(seed, embedded):
    chunks = chunks_about_topics([60 + 5 * number for number in range(TOPICS * DOCUMENTS)])
    topic = (chunks.document_ids - 100) % TOPICS
    embeddings = np.eye(TOPICS, dtype=np.float16)[topic] if embedded else None
    found = found_for(chunks)
    matched = topic_matched(found, chunks.document_ids, topics_of(chunks, embeddings, seed=seed))
    donors = matched[:, 0] // 2
    assert (found[donors] == matched).all()
    assert (chunks.document_ids[donors] != chunks.document_ids).all()
    assert (topic[donors] == topic).mean() > (0.99 if embedded else 0.8)
    assert (matched != shuffled(found, seed=seed)).any()
    again = topic_matched(found, chunks.document_ids, topics_of(chunks, embeddings, seed=seed))
    other = topic_matched(found, chunks.document_ids, topics_of(chunks, embeddings, seed=seed + 9))
    assert (again == matched).all() and (other != matched).any()


def test_what_was_found_for_itself_is_not_taken_if_the_partner_has_others():
    found = np.array([[1, 2], [3, 4], [1, 9], [2, -1], [7, 8]])
    topics = Topics(np.array([5, 6]), np.ones((2, 1), np.float32), seed=0)
    matched = topic_matched(found, np.array([5, 5, 6, 6, 6]), topics)
    assert matched.tolist() == [[7, 8], [2, -1], [3, 4], [3, 4], [1, 2]]


def test_a_document_alone_in_its_topic_takes_the_nearest_of_another_and_a_single_one_has_none():
    vectors = np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 0, 1]], np.float32)
    topics = Topics(np.array([1, 2, 3]), vectors / np.linalg.norm(vectors, axis=1, keepdims=True), seed=0)
    for count in range(2, 4):
        partners = topics.partners(np.arange(1, count + 1))
        assert (partners >= 0).all() and (partners != np.arange(count)).all()
    assert topics.partners(np.array([2])).tolist() == [-1]
    found = np.array([[1, 2], [3, 4]])
    assert (topic_matched(found, np.array([2, 2]), topics) == -1).all()


def test_a_lone_topics_document_is_paired_with_its_nearest():
    generator = np.random.default_rng(0)
    vectors = np.zeros((17, 3), np.float32)
    vectors[:8] = [1, 0, 0] + 0.01 * generator.random((8, 3))
    vectors[8:16] = [0, 1, 0] + 0.01 * generator.random((8, 3))
    vectors[16] = [0, 0.6, 0.8]
    topics = Topics(np.arange(17), vectors / np.linalg.norm(vectors, axis=1, keepdims=True), seed=1)
    assert topics.partners(np.arange(17))[16] in range(8, 16)


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_window_looks_up_that_of_its_partner_at_the_same_place(step):
    chunks = chunks_about_topics([3, *(13 + number for number in range(15))])
    chunks.tokens[chunks.tokens > 0] = np.arange((chunks.tokens > 0).sum()) + 1  # so that a token tells its place
    document_of = np.concatenate([[-1], np.repeat(chunks.document_ids, chunks.lengths)])
    sequences = np.arange(0, len(chunks) // 4, 2)
    windows = (16 - 4) // step + 1
    table = WindowTable(sequences, np.zeros((len(sequences), windows, 1), np.int64), step)
    topics = topics_of(chunks, None, seed=1)
    asked, excluded = [], []

    def nearest(queries, documents):
        asked.extend(queries)
        excluded.extend(documents.tolist())
        return np.arange(len(asked) - len(queries), len(asked))[:, None]

    matched = topic_matched_windows(table, chunks, topics, nearest, sequence_chunks=4)
    partners = dict(zip(topics.documents, topics.documents[topics.partners(topics.documents)], strict=True))
    for row, window in np.ndindex(len(sequences), windows):
        end = sequences[row] * 16 + 4 + window * step
        own = int(chunks.document_ids[(end - 1) // 4])
        query = [token for token in asked[matched.ids[row, window, 0]] if token]
        assert {int(document_of[token]) for token in query} == {partners[own]}
        shown = chunks.document_ids[sequences[row] * 4 : sequences[row] * 4 + 5].tolist()
        assert set(excluded[matched.ids[row, window, 0]]) == {partners[own], *shown}
        after = end - 4 * int(np.argmax(chunks.document_ids == own))
        theirs = np.flatnonzero(document_of == partners[own])
        if 4 <= after <= len(theirs):
            assert query == theirs[after - 4 : after].tolist()
