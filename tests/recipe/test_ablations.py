"""docs/paper.md's table of ablations: each override is accepted, builds, and changes what the model computes."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from retroflow.components import MODELS, create, recipe_schema
from retroflow.recipe import load

ROOT = Path(__file__).resolve().parents[2]
ROWS = re.findall(
    r"^\| (.+?) \| (none|`\S+`) \| (0\.\d+) \|$", (ROOT / "docs" / "paper.md").read_text(encoding="utf-8"), re.M
)
SIZES = ("retro_172m", "retro_425m", "retro_1b5", "retro_7b5")


def recipe_with(*overrides):
    return load(ROOT / "recipes" / "retro_small.yaml", ["model={name: retro_172m}", *overrides], schema=recipe_schema())


def config_of(recipe):
    return create(MODELS, recipe.values["model"], vocabulary_size=50, chunk_length=4)


def outcome(*overrides):
    """Logits of a narrow model with the recipe's choices, on retrieved text of the recipe's k neighbours."""
    recipe = recipe_with(*overrides)
    narrow = {
        "width": 16,
        "num_heads": 2,
        "head_width": 4,
        "encoder_width": 16,
        "encoder_heads": 2,
        "encoder_head_width": 4,
    }
    torch.manual_seed(0)
    model = dataclasses.replace(config_of(recipe), **narrow).build().eval()
    tokens = torch.arange(18)[None]
    retrieved = torch.arange(4 * 4 * 8).view(1, 4, 4, 8)[:, :, : recipe.values["neighbours"]["k"]] % 50
    with torch.no_grad():
        logits = model(tokens, retrieved if recipe.values["trainer"]["retrieval"] else None)
    return logits, sum(p.numel() for p in model.parameters())


def test_every_ablation_of_the_paper_s_table_is_listed():
    assert len(ROWS) == 15
    assert len({override for _, override, _ in ROWS}) == 15


@pytest.mark.parametrize("override", [override.strip("`") for _, override, _ in ROWS if override != "none"])
def test_an_ablation_is_one_override_and_changes_the_model(override):
    (before, parameters), (after, parameters_after) = outcome(), outcome(override)
    assert parameters != parameters_after or not torch.allclose(before, after, rtol=1e-3)


@pytest.mark.parametrize("name", SIZES)
def test_a_size_is_a_name_in_a_recipe_whose_options_can_be_set(name):
    schema = recipe_schema()
    recipe = load(
        ROOT / "recipes" / "retro_small.yaml", [f"model.name={name}", "model.positions=rotary"], schema=schema
    )
    config = config_of(recipe)
    assert config == MODELS.get(name)(vocabulary_size=50, chunk_length=4, positions="rotary")
    assert recipe.values["model"]["width"] == config.width
    assert recipe.values["model"]["smear"] is False  # options of the recipe's own model went with its name
