"""Every planted overlap of 8 tokens or more is found, wherever it lies, and no shorter one is called a leak."""

import numpy as np
import pytest

from retroflow.data.retrieved import read_retrieved
from retroflow.evaluation import shared_runs
from retroflow.evaluation.leakage import THRESHOLD, longest_common_runs
from retroflow.evaluation.shared_runs import least_leak, longest_runs_anywhere
from tests.data.fakes import make_chunks

M = 64


def place_of(chunks, document, offset):
    """Row and column of a token of a document."""
    return np.flatnonzero(chunks.document_ids == document)[0] + offset // M, offset % M


def write(chunks, document, offset, run):
    for number, token in enumerate(run):
        chunks.tokens[place_of(chunks, document, offset + number)] = token


def planted(length, seed):
    """Unrelated texts with one run in common; its chunks on both sides."""
    generator = np.random.default_rng([length, seed])
    database = make_chunks([300, 200, 500, 64, 30], chunk_length=M, vocabulary_size=30_000, seed=seed)
    valid = make_chunks([200, 300], chunk_length=M, first_document=5, vocabulary_size=30_000, seed=seed + 100)
    document, offset = int(generator.integers(3)), int(generator.integers(200 - length))
    if seed % 2:  # across two chunks of the database
        offset = M - int(generator.integers(1, length + 1))
    at = 64 * int(generator.integers(2)) + int(generator.integers(M - length + 1))  # within one evaluated chunk
    if seed % 3 == 2:
        at = M - length // 2  # across two evaluated chunks
    run = generator.integers(1, 30_000, length)
    write(database, document, offset, run)
    write(valid, 5, at, run)
    own = {place_of(valid, 5, at + number)[0] for number in range(length)}
    theirs = place_of(database, document, offset)[0]
    return database, valid, own, theirs


@pytest.mark.parametrize("length", [1, 7, 8, 9, 21, 63, 64])
def test_every_planted_run_is_found_and_none_of_seven_tokens(length):
    for seed in range(12):
        database, valid, own, theirs = planted(length, seed)
        rows = np.arange(len(valid))
        anywhere = longest_runs_anywhere(valid, rows, database, least=least_leak(M))
        assert set(np.flatnonzero(anywhere)) == (own if length >= 8 else set()), seed
        if len(own) == 1:
            assert anywhere.max() == (length if length >= 8 else 0)

        ids = np.full((len(valid), 2), -1)
        ids[:, 0] = theirs  # retrieved: the chunk in which the run begins, then its continuation
        retrieved, real = read_retrieved(database, ids, ids >= 0)
        runs = longest_common_runs(valid.tokens.astype(int), valid.lengths.astype(int), retrieved, real)
        leaks = set(np.flatnonzero(runs / M >= THRESHOLD))
        assert leaks <= own and (length < 8) <= (not leaks)
        if len(own) == 1:
            assert leaks == (own if length >= 8 else set()) and runs[min(own)] >= min(length, 8)


@pytest.mark.parametrize("of_sequence", [False, True])
def test_chosen_chunks_in_any_part_of_the_database_equal_a_literal_search(monkeypatch, of_sequence):
    monkeypatch.setattr(shared_runs, "CHUNKS_AT_ONCE", 3)
    monkeypatch.setattr(shared_runs, "_FILTER_BITS", 4)
    database = make_chunks([23, 9, 1, 40, 16], chunk_length=8, vocabulary_size=4, seed=1)
    valid = make_chunks([30, 5, 17], chunk_length=8, first_document=3, vocabulary_size=4, seed=2)
    rows, least = np.array([0, 1, 3, 4, 6]), 3
    texts = [database.tokens[database.document_ids == d].ravel() for d in range(5)]  # 3 and 4 are evaluated, too
    texts = [text[text > 0].tolist() for text in texts]
    # A chunk is compared with everything but its own document, or but those of its sequence.
    excluded = np.array([[3, 3], [3, 4], [3, 4], [4, 5], [5, 5]]) if of_sequence else None
    expected = []
    for place, row in enumerate(rows):
        own = np.flatnonzero(valid.document_ids == valid.document_ids[row])
        left_out = excluded[place] if of_sequence else valid.document_ids[own]
        others = [text for document, text in enumerate(texts) if document not in left_out]
        text = valid.tokens[own].ravel()[: valid.lengths[own].sum()].tolist()
        first = int(row - own[0]) * 8
        best = 0
        for start in range(max(0, first - least + 1), first + 8):
            for stop in range(start + least, min(len(text), first + 8 + least - 1) + 1):
                piece = text[start:stop]
                if any(piece == t[i : i + len(piece)] for t in others for i in range(len(t))):
                    best = max(best, len(piece))
        expected.append(min(best, 8))
    found = longest_runs_anywhere(valid, rows, database, least=least, excluded=excluded)
    assert found.tolist() == expected and len(set(expected)) > 1


def test_a_copy_of_another_evaluated_document_in_the_database_is_found():
    valid = make_chunks([200, 200, 100], chunk_length=M, vocabulary_size=30_000, seed=1)
    valid.tokens[4] = valid.tokens[0]  # of document 1, copied from document 0
    found = longest_runs_anywhere(valid, np.arange(len(valid)), valid, least=least_leak(M))
    assert np.flatnonzero(found == M).tolist() == [0, 4] and set(found[[2, 3, 8, 9]]) == {0}
    both = np.repeat([[0, 1]], len(valid), axis=0)  # all are of one sequence, which is shown neither
    assert not longest_runs_anywhere(valid, np.arange(8), valid, least=least_leak(M), excluded=both[:8]).any()
