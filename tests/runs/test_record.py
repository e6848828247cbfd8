"""How a model was trained is read from its checkpoint, whatever the job that reads it is like."""

from dataclasses import replace

import pytest

from retroflow.errors import DamagedDataError
from retroflow.runs.checkpoint_files import checkpoint_path
from retroflow.runs.checkpoints import write_checkpoint
from retroflow.runs.folder import RunFolder
from retroflow.runs.record import record_from, record_in
from retroflow.runs.resuming import ResumePoint
from retroflow.training.final_report import load_trained
from tests.training.jobs import tiny_job


def checkpoint_of(job, folder, step, *, seconds=8.0, identity=None):
    job.module.configure_model()
    path = checkpoint_path(folder, step)
    states = {"StepEnd": {"tokens": 70, "seconds": seconds, "cpu_seconds": 2 * seconds}}
    content = {"callbacks": states, "retroflow": identity or job.identity, "state_dict": job.module.state_dict()}
    write_checkpoint(content, path)
    return path, content


def test_the_facts_are_those_of_the_training_and_not_of_whoever_judges(tmp_path):
    trained = tiny_job(tmp_path, seed=3, max_steps=4)
    facts = trained.identity["training"] | {"device": "cuda", "precision": "bf16-mixed"}
    path, _ = checkpoint_of(trained, tmp_path, 4, identity=trained.identity | {"training": facts})
    record = load_trained(tiny_job(tmp_path, seed=3, max_steps=4), ResumePoint(RunFolder(tmp_path), path))
    assert (record.device, record.precision, record.seed, record.steps, record.tokens) == (
        "cuda",
        "bf16-mixed",
        3,
        4,
        70,
    )
    assert record.is_finished and not record.stopped_by_time and record.cpu_seconds == 16.0


def test_whether_there_is_more_to_train_is_for_the_job_to_say(tmp_path):
    path, _ = checkpoint_of(tiny_job(tmp_path, max_steps=4, max_seconds=5.0), tmp_path, 3)
    start = ResumePoint(RunFolder(tmp_path), path)
    assert load_trained(tiny_job(tmp_path, max_steps=4, max_seconds=5.0), start).stopped_by_time
    assert load_trained(tiny_job(tmp_path, max_steps=4, max_seconds=9.0), start) is None
    unfinished = load_trained(tiny_job(tmp_path, max_steps=4, max_seconds=9.0), start, as_it_is=True)
    assert (unfinished.steps, unfinished.stopped_by_time, unfinished.is_finished) == (3, False, False)


@pytest.mark.parametrize(
    ("seconds", "max_seconds", "by_time"), [(8.0, 0.0, False), (8.0, 5.0, True), (4.0, 5.0, False)]
)
def test_time_ends_a_training_only_where_it_was_limited(tmp_path, seconds, max_seconds, by_time):
    job = tiny_job(tmp_path, max_steps=4, max_seconds=max_seconds)
    record = record_from(job.identity, steps=3, tokens=1, seconds=seconds, cpu_seconds=1.0)
    assert record.stopped_by_time == record.is_finished == by_time
    assert not replace(record, steps=4, stopped_by_time=False).stopped_by_time


def test_a_checkpoint_that_does_not_say_is_damaged(tmp_path):
    path, content = checkpoint_of(tiny_job(tmp_path), tmp_path, 1)
    for head in (
        {},
        content | {"callbacks": {}},
        content | {"retroflow": {}},
        content | {"retroflow": {"training": "{"}},
    ):
        with pytest.raises(DamagedDataError, match="does not contain how it was trained"):
            record_in(path, head, steps=1)
