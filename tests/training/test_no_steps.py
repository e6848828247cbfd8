"""`trainer.max_steps: 0` leaves a run like any other: evaluated, and ready to generate, to be exported and trained."""

import itertools

import pytest

import retroflow as rf
from retroflow.errors import UsageError
from retroflow.planning.options import OptimizerOptions
from retroflow.runs.checkpoint_files import checkpoint_path, list_checkpoints
from tests.training.conftest import WORDS
from tests.training.jobs import assert_same_run

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_model_that_was_not_trained_is_measured_and_can_be_trained_later(run):
    steady = {"optimizer": OptimizerOptions(warmup_steps=0, learning_rate=0.01, final_share=1.0), "checkpoint_every": 6}
    fresh = run("later", max_steps=0, **steady)
    assert fresh.steps == 0 and fresh.report.training["tokens"] == 0
    assert list_checkpoints(fresh.run_folder / "checkpoints") == [checkpoint_path(fresh.run_folder / "checkpoints", 0)]
    assert "Nothing was trained (trainer.max_steps is 0): the model is as it was built." in fresh.report.findings()
    again = run("later", resume=fresh.run_folder, max_steps=0, **steady)
    assert again.report.measures["on"].nats == fresh.report.measures["on"].nats
    trained = run("at once", max_steps=12, **steady)
    later = run("later", resume=fresh.run_folder, max_steps=12, **steady)
    assert_same_run(trained.run_folder, later.run_folder)


def test_a_base_that_reads_by_itself_needs_no_training(attached, tmp_path, capsys):
    run = rf.fit(rf.load_recipe(attached))
    report = run.report
    assert set(report["validation"]) == {"on", "off", "shuffled", "random"}
    assert report["validation"]["on"]["loss"] != report["validation"]["off"]["loss"]
    assert report["training"]["num_trained_parameters"] == 0
    assert rf.evaluate(run).measures["on"].loss == pytest.approx(report["validation"]["on"]["loss"], abs=1e-6)

    prompt = " ".join(WORDS)
    model = rf.load(run)
    (generation,) = model.generate([prompt], max_new_tokens=12)
    assert generation.retrievals and generation.retrievals[0].sources
    model.save(tmp_path / "exported")
    exported = rf.load(tmp_path / "exported", database=next((tmp_path / "artifacts").glob("index-*")))
    assert exported.generate([prompt], max_new_tokens=12)[0].tokens == generation.tokens
    off = rf.load(tmp_path / "exported", retrieval=False).generate([prompt], max_new_tokens=12)[0]
    assert not off.retrievals

    assert model.origin.retrieval_step == 8 and report["lookups"] is None

    assert rf.fit(rf.load_recipe(attached), resume=run.folder).folder == run.folder
    with pytest.raises(
        UsageError, match=r"trainer\.max_steps: 5 given; all of this model's weights are frozen.*max_steps: 0"
    ):
        rf.fit(rf.load_recipe(attached, "trainer.max_steps=5", f"data.artifacts_folder={tmp_path}/none"))
    with pytest.raises(UsageError, match=r'trainer\.strategy: "ddp" for a model without a weight to train'):
        rf.fit(rf.load_recipe(attached, "trainer.strategy=ddp", "trainer.devices=2"))
    assert not (tmp_path / "none").exists()


def test_evaluation_and_generation_look_up_as_often_as_the_recipe_says(attached):
    run = rf.fit(
        rf.load_recipe(attached, "neighbours.step=3", "trainer.in_context_sequences=1", "trainer.final_sequences=6")
    )
    once = rf.evaluate(run, "neighbours.step=8")
    report, measures = rf.evaluate(run), once.measures
    often = report.measures
    assert often["off"].nats == measures["off"].nats and often["on"].nats != measures["on"].nats
    assert often["random"].nats != measures["random"].nats and often["shuffled"].nats != measures["shuffled"].nats
    assert report.opponents.measures["in_context"].nats == once.opponents.measures["in_context"].nats
    assert (report.lookups.step, report.lookups.k, once.lookups) == (3, 2, None)
    assert any("looked up every 3 tokens, 2 each time" in finding for finding in report.findings())

    model = rf.load(run)
    (generation,) = model.generate([" ".join(WORDS)], max_new_tokens=12)
    ends = [retrieval.end for retrieval in generation.retrievals]
    assert {after - before for before, after in itertools.pairwise(ends)} == {3}
    assert len(model.score(" ".join(WORDS * 3)).retrievals) > len(
        model.score(" ".join(WORDS * 3), retrieval_step=8).retrievals
    )
    with pytest.raises(
        UsageError, match=r"neighbours\.step is 9; allowed: a whole number from 1 to 8, which is data\.ch"
    ):
        rf.evaluate(run, "neighbours.step=9")
