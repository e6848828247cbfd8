"""The recipes for many GPUs on the meta device: the paper's sizes and steps, and every figure that their heads state."""

import re
from functools import cache
from pathlib import Path

import pytest

from retroflow.components import MODELS, create, recipe_schema
from retroflow.planning.costs import training_flops
from retroflow.planning.options import OptimizerOptions, TrainerOptions
from retroflow.planning.outline import outline
from retroflow.planning.placement import plan_placement
from retroflow.planning.plan import Plan
from retroflow.planning.throughput import PEAK_FLOPS
from retroflow.recipe import load

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
SMALL, LARGE = "retro_425m", "retro_7b5_fsdp"
ASSUMED_MFU = 0.40


@cache
def plan(name, *overrides):
    """The plan of a recipe on the machines it asks for, whatever this one has."""
    recipe = load(FOLDER / f"{name}.yaml", list(overrides), schema=recipe_schema())
    data = recipe.section("data")
    sizes = {"vocabulary_size": data["vocabulary_size"], "chunk_length": data["chunk_length"]}
    config = create(MODELS, recipe.section("model"), **sizes)
    options = TrainerOptions(**recipe.section("trainer"))
    return Plan(
        options=options,
        optimizer=OptimizerOptions(**recipe.section("optimizer")),
        placement=plan_placement(options),
        outline=outline(config),
        config=config,
        chunk_length=data["chunk_length"],
        sequence_chunks=data["sequence_chunks"],
        num_neighbours=recipe.section("neighbours")["k"],
        chunks=None,
    )


def outside_embeddings(name, *overrides):
    sizes = plan(name, *overrides).outline.sizes
    return sum(size for parameter, size in sizes.items() if "embedding" not in parameter)


def head(name):
    text = re.match(r"(?:#.*\n)+", (FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))[0]
    return re.sub(r"\n#\s*", " ", text)


def h100_hours(name):
    whole = plan(name)
    sequence = training_flops(whole.config, whole.sequence_tokens, whole.num_neighbours)
    sequences = whole.options.max_steps * whole.options.batch_size
    return sequences * sequence / (PEAK_FLOPS["H100"] * ASSUMED_MFU * 3600)


@pytest.mark.parametrize(("name", "paper"), [(SMALL, 425e6), (LARGE, 7532e6)])
def test_with_the_papers_positions_the_parameters_are_the_papers(name, paper):
    assert outside_embeddings(name, "model.positions=relative") == pytest.approx(paper, rel=0.005)


@pytest.mark.parametrize(("name", "warmup", "rate"), [(SMALL, 750, 2e-4), (LARGE, 750, 1e-4)])
def test_tokens_and_schedule_are_those_of_appendix_c(name, warmup, rate):
    whole = plan(name)
    assert whole.total_tokens == pytest.approx(419.43e9, rel=1e-5)
    assert (whole.optimizer.warmup_steps, whole.optimizer.learning_rate) == (warmup, rate)
    assert (whole.optimizer.weight_decay, whole.optimizer.final_share) == (0.1, 0.1)


@pytest.mark.parametrize("name", [SMALL, LARGE])
def test_the_head_states_parameters_flops_and_hours(name):
    stated, whole = head(name), plan(name)
    millions = round(whole.outline.num_parameters / 1e6)
    assert f"{millions:,}M parameters, {round(outside_embeddings(name) / 1e6):,}M of them outside embeddings" in stated
    assert f"relative: {round(outside_embeddings(name, 'model.positions=relative') / 1e6):,}M" in stated
    flops = float(re.search(r"sequences x ([\d.e+]+) FLOPs", stated)[1])
    assert flops == pytest.approx(training_flops(whole.config, 2048, 2), rel=0.005)
    hours = float(re.search(r"([\d,]+) (?:GPU|H100)-hours", stated)[1].replace(",", ""))
    assert hours == pytest.approx(h100_hours(name), rel=0.005)
    for days, devices in re.findall(r"([\d.]+) days on (\d+)", stated):
        assert float(days) == pytest.approx(h100_hours(name) / int(devices) / 24, rel=0.02)
    assert f"{whole.options.max_steps:,} x" in stated and "nothing: computed on paper" in stated


@pytest.mark.parametrize(
    ("name", "overrides", "gib"),
    [(SMALL, (), 27), (LARGE, (), 26), (LARGE, ("trainer.nodes=8", "trainer.accumulate=4"), 14)],
)
def test_the_head_states_the_memory_of_a_gpu_and_it_fits_80_gb(name, overrides, gib):
    whole = plan(name, *overrides)
    assert whole.memory.total / 2**30 == pytest.approx(gib, abs=0.75)
    assert f"{gib} GiB on each" in head(name)
    assert whole.memory.total < 0.8 * 80e9  # the rest is for CUDA, NCCL and the allocator


def test_the_large_checkpoint_is_as_large_as_its_recipe_says():
    assert plan(LARGE).checkpoint_bytes == pytest.approx(90e9, rel=0.01)
    assert "270 GB of disk for three" in head(LARGE)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_small_recipe_goes_to_several_devices_by_override(strategy):
    whole = plan("retro_small", f"trainer.strategy={strategy}", "trainer.devices=2", "trainer.device=cpu")
    assert (whole.placement.strategy, whole.placement.world_size) == (strategy, 2)
