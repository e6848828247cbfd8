"""The summary before a run says what the run will be."""

from dataclasses import replace

import pytest

from retroflow.training.options import OptimizerOptions
from retroflow.training.plan import plan_of
from tests.training.jobs import tiny_job


def text(tmp_path, **options):
    return "\n".join(plan_of(tiny_job(tmp_path, **options)).lines())


def test_the_summary_has_parameters_tokens_steps_device_and_memory(tmp_path):
    shown = text(tmp_path)
    assert "9,408 parameters, 2,384 of them for retrieval" in shown
    assert "132 training chunks, 14 validation chunks" in shown
    assert "12 steps x 48 tokens = 576 (1.1 passes over the corpus)" in shown
    assert "device     cpu, fp32" in shown
    assert "memory     about " in shown
    assert "note" not in shown


def test_without_retrieval_it_says_so(tmp_path):
    assert "retrieval not used" in text(tmp_path, retrieval=False)


def test_a_resumed_run_says_where_it_begins(tmp_path):
    assert "from step 8" in "\n".join(plan_of(tiny_job(tmp_path)).lines(start_step=8))


@pytest.mark.parametrize(("warmup", "share"), [(12, "100%"), (24, "50%")])
def test_a_warm_up_that_does_not_end_is_told(tmp_path, warmup, share):
    shown = text(tmp_path, optimizer=OptimizerOptions(warmup_steps=warmup))
    assert (
        f"note       optimizer.warmup_steps is {warmup} and trainer.max_steps 12: the learning rate only rises, to "
        f"{share} of its highest" in shown
    )


def test_chunks_too_few_for_a_sequence_are_told(tmp_path):
    plan = replace(plan_of(tiny_job(tmp_path)), sequence_chunks=1000)
    assert any("data.sequence_chunks is 1000, and the training split has" in line for line in plan.lines())


def test_a_plugins_model_has_no_memory_estimate(tmp_path):
    plan = plan_of(tiny_job(tmp_path))
    object.__setattr__(plan, "config", object())
    assert "memory     not known for this kind of model" in plan.lines()
