"""The report of passages: its losses, differences, preferences and intervals are those of a computation by hand."""

import numpy as np
import pytest

from retroflow.evaluation.intervals import interval, resampled_losses
from retroflow.evaluation.passage_report import PassageReport, groups_of


def make_report(count=40, *, documents=None, gain=0.5):
    draw = np.random.default_rng(0)
    tokens = draw.integers(5, 30, size=count)
    off = tokens * draw.uniform(2, 4, size=count)
    texts = {"off": off, "old": off - 0.1 * tokens, "new": off - (0.1 + gain) * tokens}
    old_tokens = np.where(np.arange(count) % 4, tokens, 0)
    return PassageReport(
        documents=np.arange(count) // 2 if documents is None else documents,
        groups=groups_of([["even"] if place % 2 == 0 else [] for place in range(count)]),
        nats={"text": texts, "old_text": {"off": off * 1.0, "old": off - 0.3 * tokens, "new": off - 0.2 * tokens}},
        tokens={"text": tokens, "old_text": old_tokens},
        bytes={"text": tokens * 4, "old_text": tokens * 4},
        measured={},
    )


def test_losses_and_differences_are_per_token_of_the_group():
    report = make_report()
    groups = report.to_json()["groups"]
    assert list(groups) == ["all", "even"] and [group["passages"] for group in groups.values()] == [40, 20]
    even = np.arange(0, 40, 2)
    ways, tokens = groups["even"]["text"]["ways"], report.tokens["text"][even].sum()
    assert ways["off"] == {"loss": pytest.approx(report.nats["text"]["off"][even].sum() / tokens)}
    assert "minus_first" not in ways["old"]
    assert ways["new"]["minus_first"]["value"] == pytest.approx(-0.5)
    assert ways["new"]["minus_off"]["value"] == pytest.approx(-0.6)
    assert ways["new"]["minus_off"]["interval"] == pytest.approx([-0.6, -0.6])  # the same gain everywhere


def test_a_passage_without_an_old_text_is_left_out_of_what_compares_it():
    group = make_report().to_json()["groups"]["all"]
    assert group["old_text"]["predicted_tokens"] < group["text"]["predicted_tokens"]
    shares = {way: values["share"] for way, values in group["prefers_text"].items()}
    assert shares == {"off": 0.0, "old": 0.0, "new": 1.0}
    assert group["prefers_text"]["new"]["minus_first"]["value"] == 1.0


def test_intervals_are_of_documents_and_paired():
    report = make_report(gain=0.0)
    other = report.nats["text"]["old"] + np.random.default_rng(1).normal(size=40)
    nats = {"text": {**report.nats["text"], "new": other}}
    report = PassageReport(report.documents, report.groups, nats, report.tokens, report.bytes, {})
    found = report.to_json()["groups"]["all"]["text"]["ways"]["new"]["minus_first"]["interval"]
    by_hand = {way: values.reshape(20, 2).sum(1) for way, values in nats["text"].items()}
    drawn = resampled_losses(by_hand, report.tokens["text"].reshape(20, 2).sum(1).astype(float), seed=0)
    assert found == pytest.approx(interval(drawn["new"] - drawn["old"]))


def test_the_findings_say_what_is_clear_and_what_may_be_chance():
    (every, even, overlap) = make_report().findings()
    assert overlap.startswith("What the passages share with the databases was not measured")
    assert every.startswith(
        "all: with new the loss of the texts is 0.500 nats per token lower than with old (95% interval"
    )
    assert every.endswith("of the difference).") and even.startswith("even: ")
    alone = make_report(documents=np.zeros(40, dtype=np.int64)).findings()
    assert "no 95% interval" in alone[0] and alone[0].endswith("which may be chance.")
    assert alone[-1].startswith("These are few documents (1)")
