"""Numbers of a task: means, intervals, differences to retrieval off, groups."""

import numpy as np
import pytest
from rich.console import Console

from retroflow.tasks.results import Metric, TaskResult


def made(count=40):
    draw = np.random.default_rng(0)
    off = (draw.random(count) < 0.4).astype(float)
    ways = {"off": off, "on": np.maximum(off, (draw.random(count) < 0.5).astype(float))}
    metrics = (Metric("accuracy", "share", ways), Metric("perplexity", "exp", {"off": off + 1, "on": off}, is_log=True))
    first = np.arange(count) < 1
    return TaskResult("made", metrics, [{"id": place} for place in range(count)], 100, groups={"one": first})


def test_values_differences_and_intervals():
    result = made()
    ways = result.to_json()["groups"]["all"]["ways"]
    off, on = (result.metrics[0].values[way].mean() for way in ("off", "on"))
    assert ways["on"]["accuracy"]["value"] == pytest.approx(on)
    change = ways["on"]["accuracy"]["minus_off"]
    assert change["value"] == pytest.approx(on - off)
    assert 0 < change["interval"][0] < change["value"] < change["interval"][1]
    assert "minus_off" not in ways["off"]["accuracy"]
    worse = ways["on"]["perplexity"]["minus_off"]
    assert ways["off"]["perplexity"]["value"] == pytest.approx(np.e * ways["on"]["perplexity"]["value"])
    assert worse["interval"][1] < 0
    one = result.to_json()["groups"]["one"]
    assert one["examples"] == 1 and one["ways"]["on"]["accuracy"]["interval"] is None
    assert result.to_json() == made().to_json()


def test_the_table_says_what_part_was_measured():
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(made().render())
    text = console.export_text()
    assert "made: 40 examples of 100, drawn at random" in text and "one: 1 examples" in text and "[" in text


@pytest.mark.parametrize("is_log", [False, True])
def test_what_is_no_better_than_random_chunks_cannot_be_overlooked(is_log):
    draw = np.random.default_rng(0)
    better, worse = draw.random(60), draw.random(60) + 1
    if not is_log:
        better, worse = worse, better
    for on, random, is_said in ((better, worse, False), (worse, better, True), (worse, worse, True)):
        ways = {"off": worse, "on": on, "random": random}
        result = TaskResult("made", (Metric("it", "means", ways, is_log=is_log),), [{}] * 60, 60)
        numbers = result.to_json()["groups"]["all"]["ways"]
        change = numbers["on"]["it"]["value"] - numbers["random"]["it"]["value"]
        assert numbers["on"]["it"]["minus_random"]["value"] == pytest.approx(change)
        assert "minus_random" not in numbers["random"]["it"]
        assert len(result.to_json()["warnings"]) == is_said
        if is_said:
            assert result.warnings[0].startswith("What was found is no better than random chunks: it ")
