"""Counts and sums equal those of a slow, literal loop."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from retroflow.evaluation.perplexity import measure


class FakeBatch(NamedTuple):
    targets: torch.Tensor
    num_bytes: torch.Tensor
    nats: torch.Tensor


def make_batches():
    """Seven chunks of four tokens, served as 2 x 2 chunks, 1 x 2 chunks, 1 x 1 chunk; the last target is missing."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 9, (28,), generator=generator)
    targets[[3, 10, 11, 27]] = -100
    nats = torch.rand(28, generator=generator).where(targets >= 0, 0.0)
    cuts = [(0, 16, 2), (16, 24, 1), (24, 28, 1)]
    return (
        targets,
        nats,
        [
            FakeBatch(targets[a:b].view(rows, -1), torch.full((rows,), 10), nats[a:b].view(rows, -1))
            for a, b, rows in cuts
        ],
    )


def test_measure_equals_a_literal_loop_over_tokens():
    targets, nats, batches = make_batches()
    found = measure(lambda batch: batch.nats, batches, num_chunks=7, chunk_length=4)
    chunk_nats, chunk_tokens, total = [0.0] * 8, [0] * 8, 0.0
    for position in range(28):
        if targets[position] >= 0:
            chunk_nats[(position + 1) // 4] += float(nats[position])
            chunk_tokens[(position + 1) // 4] += 1
            total += float(nats[position])
    assert found.tokens == 24 == sum(chunk_tokens)
    assert found.bytes == 40
    assert found.nats == pytest.approx(total, abs=1e-12)
    assert found.chunk_nats.tolist() == pytest.approx(chunk_nats[:7], abs=1e-12)
    assert found.chunk_tokens.tolist() == chunk_tokens[:7]


def test_the_units_are_those_of_their_names():
    _, _, batches = make_batches()
    found = measure(
        lambda batch: torch.where(batch.targets >= 0, math.log(2.0), 0.0), batches, num_chunks=7, chunk_length=4
    )
    assert found.loss == pytest.approx(math.log(2.0))
    assert found.perplexity == pytest.approx(2.0)
    assert found.bits_per_byte == pytest.approx(24 / 40)


def test_how_a_split_is_cut_into_batches_does_not_matter():
    targets, nats, batches = make_batches()
    one = FakeBatch(targets[None], torch.tensor([40]), nats[None])
    first = measure(lambda batch: batch.nats, batches, num_chunks=7, chunk_length=4)
    second = measure(lambda batch: batch.nats, [one], num_chunks=7, chunk_length=4)
    assert np.allclose(first.chunk_nats, second.chunk_nats, atol=1e-12)
    assert first.bytes == second.bytes


def test_advance_counts_sequences_and_may_stop():
    seen = []
    measure(lambda batch: batch.nats, make_batches()[2], num_chunks=7, chunk_length=4, advance=seen.append)
    assert seen == [2, 1, 1]
