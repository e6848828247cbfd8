"""Checks of a recipe's model before anything is prepared."""

from retroflow.components import MODELS, create
from retroflow.errors import UsageError
from retroflow.planning.options import TrainerOptions
from retroflow.planning.placement import Placement
from retroflow.recipe import Recipe


def check_model(recipe: Recipe, options: TrainerOptions, placement: Placement) -> None:
    """Let a model that starts from files look for them before minutes of preparing.

    Raises:
        UsageError: the files do not exist or do not fit, or the model cannot be compiled for several processes.
    """
    section, data = recipe.section("model"), recipe.section("data")
    config = create(MODELS, section, vocabulary_size=1, chunk_length=data["chunk_length"])
    if options.compile and placement.strategy != "single" and not config.compiles_by_block:
        raise UsageError(
            f'trainer.compile: true given; a model "{section["name"]}" can be compiled in one process alone, and '
            f"{placement.strategy} compiles block by block. Leave trainer.compile out."
        )
    config.check(sequence_length=data["sequence_chunks"] * data["chunk_length"])
