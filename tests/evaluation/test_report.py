"""The report says what was measured, and when it means little."""

import io
import json

import pytest
from rich.console import Console

from retroflow.evaluation.leakage import OverlapBucket
from retroflow.evaluation.report import Report
from tests.evaluation.test_leakage import make_measure


def make_report(on=80.0, shuffled=95.0, random=97.0, off=100.0, **changes):
    nats = {"off": off, "on": on, "shuffled": shuffled, "random": random}
    measures = {mode: make_measure([value], [50]) for mode, value in nats.items()}
    overlap = [OverlapBucket(at_least=0.0, below=0.125, chunks=1, tokens=50, loss_on=on / 50, loss_off=off / 50)]
    return Report(measures=measures, **({"overlap": overlap} | changes))


def rendered(report):
    console = Console(file=io.StringIO(), width=100)
    console.print(report.render())
    return console.file.getvalue()


def test_gains_are_shares_of_the_baselines_loss():
    report = make_report()
    assert report.gain("off") == pytest.approx(0.2)
    assert "20.0%" in rendered(report) and "15.8%" in rendered(report)
    assert report.findings() == [
        "Overlap: 100.0% of 1 chunks share less than 12.5% of a chunk in a row with what was retrieved; the gain is "
        "0.4000 nats per token (20.0%) on them and not known (there are none) on the others. Near-duplicate documents "
        "were not looked for (`retroflow compare` does)."
    ]


def test_a_gain_without_its_overlap_is_never_shown():
    report = make_report(overlap=[])
    assert "%" not in rendered(report) and "so no gain is shown" in rendered(report)
    assert report.to_json()["overlap_statement"] is None
    assert "Overlap: " in rendered(make_report())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shuffled": 80.5}, "The gain is small: retrieval is only 0.6% better than another chunk's neighbours."),
        ({"shuffled": 79.0}, "The gain is small: retrieval is no better than another chunk's neighbours."),
        ({"on": 110.0, "shuffled": 110.0}, "Retrieval hurts: the loss is 10.0% higher than without it."),
        ({"without_neighbours": 0.25}, "Nothing was retrieved for 25.0% of the validation chunks."),
        (
            {"overlap": [OverlapBucket(at_least=0.0, below=0.125, chunks=1, tokens=9, loss_on=1.0, loss_off=1.001)]},
            "The gain comes from copying",
        ),
        (
            {"training": {"stopped_by_time": True, "steps": 7, "max_steps": 9}},
            "stopped by trainer.max_seconds after 7 of 9 steps",
        ),
        (
            {"training": {"stopped_by_time": False, "steps": 7, "max_steps": 9}},
            "Measured after 7 of 9 steps: the training was not finished.",
        ),
        (
            {"measured": {"overrides": {"neighbours.k": 1, "trainer.retrieval": False, "embedder.name": "bert"}}},
            "differ from training: neighbours.k=1, trainer.retrieval=false, embedder.name=bert.",
        ),
    ],
)
def test_findings_warn_of_what_the_table_does_not_show(changes, words):
    report = make_report(**changes)
    assert any(words in sentence for sentence in report.findings())
    assert words[:30] in rendered(report)


@pytest.mark.parametrize("off", [99.51, 99.999, 100.0, 100.001, 100.9])
def test_what_is_within_one_percent_neither_hurts_nor_helps(off):
    report = make_report(on=100.0, shuffled=100.0004, random=99.9996, off=off)
    said = " ".join(report.findings())
    assert "Retrieval makes little difference: the loss is within 1% of the loss without it." in said
    assert "hurts" not in said and "-0.0%" not in said + rendered(report)
    worse = make_report(on=100.0, off=98.9)
    assert any("Retrieval hurts: the loss is 1.1% higher" in sentence for sentence in worse.findings())


def test_what_rounds_to_nothing_has_no_sign_and_little_is_not_nothing():
    bucket = OverlapBucket(at_least=0.0, below=0.125, chunks=1, tokens=9, loss_on=1.0, loss_off=0.99999)
    report = make_report(overlap=[bucket], without_neighbours=0.0001)
    said = " ".join(report.findings()) + rendered(report)
    assert "it is 0.0%." in said and "-0.0%" not in said
    assert "Nothing was retrieved for less than 0.1% of the validation chunks." in said


def test_a_report_does_not_confuse_how_a_model_was_trained_with_how_it_was_measured():
    off = {"off": make_measure([5.0], [5])}
    assert "trained without retrieval" in Report(off, training={"retrieval": False}).findings()[0]
    measured_without = Report(off, training={"retrieval": True}).findings()
    assert measured_without == [
        "Measured without retrieval, though the model was trained with it: no fair baseline for one that was trained without."
    ]
    assert (
        "Measured with retrieval, though the model was trained without it."
        in make_report(training={"retrieval": False}).findings()
    )


def test_json_holds_definitions_counts_and_all_modes():
    value = json.loads(json.dumps(make_report().to_json()))
    assert list(value["validation"]) == ["on", "shuffled", "random", "off"]
    assert value["predicted_tokens"] == 50 and value["bytes"] == 100
    assert value["gain_over_shuffled"] == pytest.approx(1 - 80 / 95)
    assert "bits_per_byte" in value["definitions"]


def test_a_model_without_retrieval_is_called_a_baseline():
    report = Report(measures={"off": make_measure([5.0], [5])})
    assert "baseline" in report.findings()[0]
    assert "gain_over_off" not in report.to_json() and report.headline()
    assert "off" in rendered(report)
