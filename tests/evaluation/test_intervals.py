"""Intervals by bootstrap over documents: paired, seeded, and as wide as they must be."""

import numpy as np
import pytest

from retroflow.evaluation.intervals import RESAMPLES, by_document, interval, resampled_losses


def drawn(seed, *, documents=60):
    """Documents of unequal length whose tokens share their document's luck; on is 0.3 nats below off."""
    random = np.random.default_rng(seed)
    tokens = random.integers(20, 200, size=documents).astype(np.float64)
    hard = random.normal(3.0, 1.0, size=documents)  # shared by the modes: what pairing takes away
    gain = random.normal(0.3, 0.2, size=documents)
    return {"off": hard * tokens, "on": (hard - gain) * tokens}, tokens


def test_values_of_chunks_are_summed_by_document_in_ascending_order():
    assert by_document(np.array([1.0, 2.0, 4.0]), np.array([7, 3, 7])).tolist() == [2.0, 5.0]


def test_it_equals_a_literal_loop_over_resamples():
    nats, tokens = drawn(0, documents=5)
    found = resampled_losses(nats, tokens, seed=3)
    times = np.random.default_rng([3, 5]).multinomial(5, [0.2] * 5, size=RESAMPLES)
    for number in (0, 1, RESAMPLES - 1):
        documents = [document for document in range(5) for _ in range(times[number, document])]
        assert len(documents) == 5
        for mode, of_mode in nats.items():
            literal = sum(of_mode[each] for each in documents) / sum(tokens[each] for each in documents)
            assert found[mode][number] == pytest.approx(literal, rel=1e-12)


def test_it_holds_the_truth_in_about_95_of_100_draws():
    inside = 0
    for seed in range(100):
        nats, tokens = drawn(seed)
        losses = resampled_losses(nats, tokens, seed=seed)
        low, high = interval(losses["on"] - losses["off"])
        inside += low <= -0.3 <= high
    assert 88 <= inside <= 99


def test_pairing_takes_away_what_the_modes_share():
    nats, tokens = drawn(1)
    losses = resampled_losses(nats, tokens, seed=1)
    low, high = interval(losses["on"] - losses["off"])
    of_one = interval(losses["off"])
    assert high - low < 0.5 * (of_one[1] - of_one[0])
    again = resampled_losses(nats, tokens, seed=1)
    assert all((again[mode] == losses[mode]).all() for mode in nats)
    assert (resampled_losses(nats, tokens, seed=2)["on"] != losses["on"]).any()
