"""The summary before a run says what the run will be."""

from dataclasses import replace

import pytest

from retroflow.distributed.ranks import ALONE
from retroflow.errors import UsageError
from retroflow.planning import plan as plan_module
from retroflow.planning.machine_memory import MachineMemory
from retroflow.planning.options import OptimizerOptions, TrainerOptions
from retroflow.planning.placement import place
from retroflow.planning.plan import check_memory, plan_of_recipe
from retroflow.training.summary import plan_of
from tests.training.jobs import tiny_job, tiny_recipe


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
    assert any("data.sequence_chunks is 1000, but the training split has" in line for line in plan.lines())


def test_of_a_model_without_a_formula_the_weights_and_their_optimizer_are_known(tmp_path):
    plan = replace(plan_of(tiny_job(tmp_path)), config=object())
    assert not plan.memory.is_complete and plan.memory.total == 16 * 9408
    line = next(line for line in plan.lines() if line.startswith("memory"))
    assert line == (
        "memory     at least 147 KiB per device: 147 KiB weights, gradients and AdamW; activations are unknown "
        "for this kind of model"
    )


def test_what_is_not_trained_has_no_gradients_and_no_means(tmp_path):
    with_retrieval, without = (plan_of(tiny_job(tmp_path, retrieval=each)) for each in (True, False))
    assert with_retrieval.memory.states - without.memory.states == 12 * 2384


@pytest.fixture
def machine(monkeypatch):
    """machine(total, free): that the memory here is this."""

    def has(total, free):
        there = None if total is None else MachineMemory(total, free, "of memory")
        monkeypatch.setattr(plan_module, "machine_memory", lambda placement: there)

    return has


def test_what_cannot_fit_is_refused_with_need_place_and_remedy(tmp_path, machine):
    plan = plan_of(tiny_job(tmp_path))
    needed = plan.memory.total
    for total, free in ((needed, 0), (needed, None), (None, None)):
        machine(total, free)
        check_memory(plan)  # what is free now may be more when it is needed
    machine(needed - 1, 0)
    with pytest.raises(
        UsageError, match="does not fit: it needs about 381 KiB per device: .*; this machine has 381 KiB of memory"
    ) as caught:
        check_memory(plan)
    assert caught.value.exit_code == 2
    for word in (
        "206 KiB activations",
        "Lower trainer.batch_size",
        "activation_checkpointing=true",
        "ignore_memory=True",
    ):
        assert word in str(caught.value)
    machine(plan.memory.of_model - 1, 0)
    with pytest.raises(UsageError, match="Make the model smaller .*trainer.strategy=fsdp"):
        check_memory(plan)


def test_the_summary_says_what_does_not_fit(tmp_path, machine):
    plan = plan_of(tiny_job(tmp_path))
    machine(plan.memory.total, plan.memory.total)
    assert "note" not in "\n".join(plan.lines())
    machine(2 * plan.memory.total, 1 << 10)
    assert (
        "note       may not fit: it needs about 381 KiB per device, and of 761 KiB of memory 1 KiB are free now"
        in plan.lines()
    )
    machine(1 << 10, 0)
    assert (
        "note       does not fit: it needs about 381 KiB per device, and this machine has 1 KiB of memory"
        in plan.lines()
    )


def test_the_need_is_never_stated_too_high_before_the_tokenizer_is_known(tmp_path):
    recipe = tiny_recipe()
    early = plan_of_recipe(recipe, place(TrainerOptions(device="cpu"), ALONE))
    late = plan_of_recipe(recipe, early.placement, vocabulary_size=8192)
    assert 0 < early.memory.total < late.memory.total


def test_compiling_and_many_workers_are_told(tmp_path):
    assert "trainer.compile: compiling takes minutes before the first step" in text(tmp_path, compile=True)
    plan = plan_of(tiny_job(tmp_path))
    assert "num_workers" not in "\n".join(plan.lines())
    many = "\n".join(replace(plan, num_workers=1000).lines())
    assert "note       data.num_workers: 1,000 processes would load batches on" in many
