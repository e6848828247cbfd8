"""Each point of a curve reads what its name says, is measured once, and continues where it was killed."""

import json

import numpy as np
import pytest

import retroflow as rf
from retroflow.comparison import measuring
from retroflow.comparison.curve import curve as measure_curve
from retroflow.comparison.other_searches import OtherSearches
from retroflow.comparison.run_plan import RunPlan
from retroflow.errors import UsageError
from tests.cli.conftest import write_recipe
from tests.training.jobs import Killed

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return rf.fit(rf.load_recipe(write_recipe(tmp_path_factory.mktemp("curve"), "tiny"))).folder


def by_label(curve):
    return {point["label"]: point for point in curve.points}


def test_the_loss_at_k_is_evaluate_s_and_the_files_agree(run):
    found = rf.curve(run, over="k", values=[1, 2, 5], sequences=6)
    points = by_label(found)
    for k in (1, 5):
        wanted = rf.compare(run, f"neighbours.k={k}", rows=["off", "on"], sequences=6)
        assert points[str(k)]["on"] == wanted.rows[1].nats and points[str(k)]["gain"] == wanted.rows[1].gain
    own = rf.compare(run, rows=["off", "on"], sequences=6)
    assert points["2"]["on"] == own.rows[1].nats and points["2"]["off"] == own.rows[0].nats
    low, high = points["2"]["on_interval"]
    assert low <= points["2"]["on"] <= high
    folder = run / "curves"
    stored = json.loads((folder / "k.json").read_text())
    assert stored["curve_version"] == 1 and [point["x"] for point in stored["points"]] == [1, 2, 5]
    assert stored["overlap_statement"].startswith("Overlap: ") and stored["overlap_statement"] in stored["note"]
    lines = (folder / "k.csv").read_text().splitlines()
    assert len(lines) == 4 and "on_interval_low" in lines[0] and lines[1].startswith("1,1,")
    pytest.importorskip("matplotlib")
    assert (folder / "k.png").stat().st_size > 1000 and (folder / "k.svg").exists()


def test_a_measured_point_opens_no_model_and_a_killed_curve_continues(run, monkeypatch):
    plan = RunPlan.of(run, [], sequences=5, checkpoint=None)
    measure_curve(plan, "k", ["1"])
    write, opened = measuring.write_row, []

    def kill_at(*arguments):
        raise Killed

    monkeypatch.setattr(measuring, "write_row", kill_at)
    with pytest.raises(Killed):
        measure_curve(plan, "k", ["1", "3"])
    monkeypatch.setattr(
        measuring, "write_row", lambda *arguments: (opened.append(arguments[0].stem), write(*arguments))
    )
    found = measure_curve(plan, "k", ["1", "3"])
    assert set(opened) == {"curve-k-3"} and len(found.points) == 2
    monkeypatch.setattr(RunPlan, "open", kill_at)
    assert [point["on"] for point in measure_curve(plan, "k", ["3"]).points] == [found.points[1]["on"]]


def test_smaller_databases_lie_in_larger_ones_and_all_of_it_is_on(run, monkeypatch):
    searched = {}
    before = OtherSearches.by

    def by(self, section, rows=None):
        searched[len(rows)] = rows
        return before(self, section, rows)

    monkeypatch.setattr(OtherSearches, "by", by)
    found = rf.curve(run, over="size", values=["20%", "50%", "100%"], sequences=6)
    points = by_label(found)
    small, large = (searched[count] for count in sorted(searched))
    assert set(small) < set(large) and len(large) == points["50%"]["chunks"] < points["100%"]["chunks"]
    assert points["100%"]["documents"] > points["50%"]["documents"]
    assert points["100%"]["on"] == rf.compare(run, rows=["off", "on"], sequences=6).rows[1].nats
    assert len({point["on"] for point in found.points}) == 3


def test_retrievers_have_their_recall(run):
    pytest.importorskip("bm25s")
    found = rf.curve(run, over="retriever", values=["exact", "bm25", "random"], sequences=6)
    points = by_label(found)
    assert points["exact"]["recall"] == 1.0 and points["random"]["recall"] < 0.2
    assert points["random"]["recall"] < points["bm25"]["recall"] < 1.0
    rows = {row.name: row.nats for row in rf.compare(run, rows=["off", "on", "random"], sequences=6).rows}
    assert points["exact"]["on"] == rows["on"] and points["random"]["on"] == rows["random"]


def test_lookups_more_often_are_those_of_the_recipe_s_step(run):
    found = rf.curve(run, over="step", sequences=6)
    assert [point["x"] for point in found.points] == [8, 4, 2]  # a chunk has 8 tokens
    wanted = rf.compare(run, "neighbours.step=4", rows=["off", "on"], sequences=6).rows[1].nats
    assert by_label(found)["4"]["on"] == pytest.approx(wanted, abs=1e-6)
    assert by_label(found)["8"]["on"] == rf.compare(run, rows=["off", "on"], sequences=6).rows[1].nats


def test_the_curve_over_alpha_ends_at_the_table(run):
    found = rf.curve(run, over="alpha", sequences=6)
    rows = rf.compare(run, rows=["off", "on"], sequences=6).rows
    last = found.points[-1]
    assert (last["on"], last["off"]) == pytest.approx((rows[1].bits_per_byte, rows[0].bits_per_byte))
    assert found.measure == "bits per byte" and np.all(np.diff([point["chunks"] for point in found.points]) >= 0)


def test_words_that_are_no_point_are_refused(run):
    for over, values, message in (
        ("kk", [], "over='kk': there is no such curve. Known: k, size, retriever, step, alpha, training."),
        ("k", ["0"], "values='0': k must be a whole number from 1 on."),
        ("size", ["120%"], "values='120%': give a share of the database above 0% and up to 100%."),
        ("step", ["3"], "values='3': lookups are so many tokens apart that a chunk of 8 is a multiple."),
        ("retriever", ["fais"], "values='fais': there is no such retriever. Did you mean"),
        ("alpha", ["0.5"], "values: a curve over alpha has those of the paper"),
    ):
        with pytest.raises(UsageError, match=f"^{message}"):
            rf.curve(run, over=over, values=values, sequences=6)
    with pytest.raises(UsageError, match="reads no neighbours"):
        rf.curve(run, "trainer.retrieval=false", over="k", sequences=6)
