"""`trainer.max_steps: 0` leaves a run like any other: evaluated, and ready to generate, to be exported and trained."""

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

    assert rf.fit(rf.load_recipe(attached), resume=run.folder).folder == run.folder
    with pytest.raises(
        UsageError, match=r"trainer\.max_steps: 5 given; all of this model's weights are frozen.*max_steps: 0"
    ):
        rf.fit(rf.load_recipe(attached, "trainer.max_steps=5", f"data.artifacts_folder={tmp_path}/none"))
    with pytest.raises(UsageError, match=r'trainer\.strategy: "ddp" for a model without a weight to train'):
        rf.fit(rf.load_recipe(attached, "trainer.strategy=ddp", "trainer.devices=2"))
    assert not (tmp_path / "none").exists()
