"""A stored report, printed again as it was printed when it was made."""

import json

import numpy as np
import pytest
from rich.console import Console

from retroflow.errors import DamagedDataError, UsageError
from retroflow.evaluation.leakage import OverlapBucket
from retroflow.evaluation.perplexity import Measure
from retroflow.evaluation.report import Report
from retroflow.evaluation.stored_report import read_report
from retroflow.store.sealed_json import render_sealed


def measured(nats):
    return Measure(nats, 100, 380, 0.5, np.full(2, nats / 2), np.array([50, 50]))


def printed(shown):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


@pytest.fixture
def report():
    return Report(
        measures={
            "on": measured(199.0),
            "shuffled": measured(200.0),
            "random": measured(201.0),
            "off": measured(198.0),
        },
        without_neighbours=0.25,
        overlap=[OverlapBucket(0.0, 0.5, 1, 50, 2.0, 2.1), OverlapBucket(0.5, 1.0, 1, 50, 1.0, 2.0)],
        training={"steps": 3, "max_steps": 6, "stopped_by_time": True},
    )


def test_it_is_printed_as_it_was(tmp_path, report):
    (tmp_path / "report.json").write_text(render_sealed(report.to_json(), what="report"))
    stored = read_report(tmp_path)
    assert printed(stored.render()) == printed(report.render()) and "stopped by trainer.max_seconds" in printed(
        stored.render()
    )
    assert json.loads(stored.to_json()) == json.loads(json.dumps(report.to_json()))


def test_the_sentences_are_those_of_then(tmp_path, report):
    (tmp_path / "report.json").write_text(render_sealed(report.to_json() | {"findings": ["Said then."]}, what="report"))
    assert printed(read_report(tmp_path).render()).endswith("Said then.\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation": {}}, r"not a report that fit writes \(KeyError"),
        ({"validation": {"off": {"nats": "x", "seconds": 1}}}, "ValueError"),
        ({"predicted_tokens": 0}, "ZeroDivisionError"),
        ({"by_overlap": [{"at_least": 1}]}, "TypeError"),
        ({"training": 3}, "TypeError"),
        ({"findings": None}, "TypeError"),
    ],
)
def test_a_damaged_report_is_told(tmp_path, report, change, message):
    (tmp_path / "report.json").write_text(render_sealed(report.to_json() | change, what="report"))
    with pytest.raises(DamagedDataError, match=message):
        read_report(tmp_path)


def test_a_run_without_a_report_is_told(tmp_path):
    with pytest.raises(UsageError, match="has no report.json: it is not a run folder, or its training has not ended"):
        read_report(tmp_path)
    with pytest.raises(UsageError, match="there is no folder"):
        read_report(tmp_path / "nowhere")
