"""What each strategy saves and costs, and the sum of all."""

from dataclasses import replace

import pytest

from retroflow.planning.costs import activation_bytes
from retroflow.planning.memory_estimate import DeviceWork, estimate_memory
from retroflow.planning.outline import outline
from tests.training.jobs import tiny_config

CONFIG = tiny_config(num_layers=6, cca_layers=(3, 6), dropout=0.0)
SIZES = outline(CONFIG).sizes
WHOLE = DeviceWork(sequences=3, length=12, num_neighbours=2, bf16=False)


def test_one_device_in_float32_has_the_states_and_the_activations():
    estimate = estimate_memory(CONFIG, SIZES, WHOLE)
    assert estimate.states == 16 * sum(SIZES.values())
    assert estimate.copies == 0
    assert estimate.activations == 3 * activation_bytes(CONFIG, 12, 2, value_bytes=4)
    assert estimate.logits == 3 * 12 * 50 * 12
    assert estimate.total == estimate.states + estimate.activations + estimate.logits


def test_shards_divide_the_states_and_gather_two_units_and_the_rest():
    estimate = estimate_memory(CONFIG, SIZES, replace(WHOLE, shards=8))
    assert estimate.states == 2 * sum(SIZES.values())
    model = CONFIG.build()
    units = [sum(parameter.numel() for parameter in block.parameters()) for block in model.blocks_to_shard]
    root = sum(SIZES.values()) - sum(units)
    assert estimate.copies == 4 * (root + sum(sorted(units)[-2:]))


@pytest.mark.parametrize(
    ("change", "more", "less"),
    [
        ({"bf16": True}, "copies", "activations"),
        ({"buckets": True}, "copies", None),
        ({"checkpointing": True}, None, "activations"),
        ({"num_neighbours": 0}, None, "activations"),
    ],
)
def test_what_an_option_costs_and_saves(change, more, less):
    before, after = estimate_memory(CONFIG, SIZES, WHOLE), estimate_memory(CONFIG, SIZES, replace(WHOLE, **change))
    for part in ("states", "copies", "activations"):
        difference = getattr(after, part) - getattr(before, part)
        assert (difference > 0) == (part == more) and (difference < 0) == (part == less), part


def test_the_sum_and_its_parts_are_written_out():
    shown = str(estimate_memory(CONFIG, SIZES, WHOLE))
    assert shown.startswith("about ") and "KiB weights, gradients and AdamW" in shown
    assert "copies" not in shown
