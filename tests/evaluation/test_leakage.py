"""Overlap equals a literal search for the longest common run."""

import numpy as np
import pytest

from retroflow.data.retrieved import read_retrieved
from retroflow.data.windows import WindowTable
from retroflow.evaluation.leakage import by_overlap, longest_common_runs, overlaps_of
from retroflow.evaluation.perplexity import Measure
from tests.training.jobs import tiny_splits


def literal(tokens, length, retrieved, real):
    best = 0
    for text, mask in zip(retrieved, real, strict=True):
        for i in range(length):
            for j in range(len(text)):
                run = 0
                while i + run < length and j + run < len(text) and mask[j + run] and tokens[i + run] == text[j + run]:
                    run += 1
                best = max(best, run)
    return best


def test_longest_common_runs_equals_a_literal_search():
    generator = np.random.default_rng(0)
    tokens, retrieved = generator.integers(0, 3, (40, 6)), generator.integers(0, 3, (40, 2, 12))
    lengths, real = generator.integers(1, 7, 40), generator.random((40, 2, 12)) < 0.8
    expected = [literal(*row) for row in zip(tokens, lengths, retrieved, real, strict=True)]
    assert longest_common_runs(tokens, lengths, retrieved, real).tolist() == expected
    assert len(set(expected)) > 3


def test_a_copied_chunk_overlaps_wholly_and_nothing_retrieved_not_at_all():
    tokens = np.arange(8)[None]
    retrieved = np.concatenate([np.full(5, 99), np.arange(8), np.full(3, 99)])[None, None]
    real = np.ones_like(retrieved, dtype=bool)
    assert longest_common_runs(tokens, np.array([8]), retrieved, real).tolist() == [8]
    assert longest_common_runs(tokens, np.array([8]), retrieved, ~real).tolist() == [0]


@pytest.mark.parametrize(("step", "lookups_read"), [(4, 1), (2, 1), (2, 2), (1, 3)])
def test_with_frequent_lookups_a_chunk_is_compared_with_what_its_tokens_read(step, lookups_read):
    splits, m, length = tiny_splits(), 4, 3
    sequences = np.array([0, 2, 4])  # the last one is shorter
    generator = np.random.default_rng(step)
    ids = generator.integers(len(splits.train_chunks), size=(3, (length - 1) * m // step + 1, 2))
    table = WindowTable(sequences, ids, step)
    found, number = overlaps_of(splits, table, sequences, lookups_read=lookups_read), 0
    for row, sequence in enumerate(sequences):
        rows = range(sequence * length, min((sequence + 1) * length, len(splits.valid_chunks)))
        for chunk, in_split in enumerate(rows):
            read = set()
            for known in range(chunk * m, (chunk + 1) * m):  # tokens before the predicted one
                newest = (known - m) // step
                read |= {window for window in range(newest - lookups_read + 1, newest + 1) if window >= 0}
            passages = ids[row, sorted(read)].reshape(-1)
            text, real = read_retrieved(splits.train_chunks, passages, passages >= 0)
            tokens, count = splits.valid_chunks.tokens[in_split], int(splits.valid_chunks.lengths[in_split])
            assert found[number] == literal(tokens, count, text, real) / m
            number += 1
    assert number == len(found) and len(set(found.tolist())) > 1


def make_measure(chunk_nats, tokens):
    return Measure(
        nats=float(np.sum(chunk_nats)),
        tokens=int(np.sum(tokens)),
        bytes=100,
        seconds=0.0,
        chunk_nats=np.array(chunk_nats, dtype=float),
        chunk_tokens=np.array(tokens),
    )


def test_buckets_part_all_tokens_and_leave_empty_ones_out():
    tokens = [10, 20, 30, 40]
    on, off = make_measure([10, 10, 15, 4], tokens), make_measure([10, 20, 30, 40], tokens)
    buckets = by_overlap(np.array([0.0, 0.125, 0.2, 1.0]), on, off)
    assert [(bucket.at_least, bucket.chunks, bucket.tokens) for bucket in buckets] == [
        (0.0, 1, 10),
        (0.125, 2, 50),
        (0.5, 1, 40),
    ]
    assert buckets[1].loss_on == 25 / 50 and buckets[-1].loss_off == 1.0
