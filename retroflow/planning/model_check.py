"""Checks of a recipe's model before anything is prepared."""

import importlib.util

from retroflow.components import MODELS, create
from retroflow.errors import MissingExtraError, UsageError
from retroflow.planning.options import TrainerOptions
from retroflow.planning.placement import Placement
from retroflow.recipe import Recipe


def check_model(recipe: Recipe, options: TrainerOptions, placement: Placement) -> None:
    """Let a model that starts from files look for them before minutes of preparing.

    Raises:
        UsageError: the files do not exist or do not fit, or the model cannot be compiled for several processes, or has
            no opponents to train.
        MissingExtraError: a library is missing that its opponents need.
    """
    section, data = recipe.section("model"), recipe.section("data")
    config = create(MODELS, section, vocabulary_size=1, chunk_length=data["chunk_length"])
    if options.compile and placement.strategy != "single" and not config.compiles_by_block:
        raise UsageError(
            f'trainer.compile: true given; a model "{section["name"]}" can be compiled in one process alone, and '
            f"{placement.strategy} compiles block by block. Leave trainer.compile out."
        )
    if data.get("format") == "qa":
        _check_questions(options)
    if options.has_teacher:
        _check_teacher(section["name"], options, placement, has_frozen_base=config.has_frozen_base)
    if options.trained_opponents:
        _check_opponents(section["name"], options, placement, has_frozen_base=config.has_frozen_base)
    config.check(sequence_length=data["sequence_chunks"] * data["chunk_length"])


def _check_questions(options: TrainerOptions) -> None:
    """Refuse teachers and opponents of questions: both read prompts, and questions are padded."""
    given = {
        "distil": options.distil > 0,
        "random_target": options.random_target == "base",
        "trained_opponents": options.trained_opponents,
    }
    for name, is_given in given.items():
        if is_given:
            raise UsageError(
                f"trainer.{name} is given, and data.format is qa, which has no such prompts. Leave it out."
            )


def _check_teacher(name: str, options: TrainerOptions, placement: Placement, *, has_frozen_base: bool) -> None:
    """Refuse a teacher where there is none, or where it cannot run beside what it teaches."""
    key = "distil" if options.distil else "random_target"
    reasons = {
        f'a model "{name}" with these options has no frozen base': not has_frozen_base,
        "trainer.retrieval is false": not options.retrieval,
        "trainer.compile is true, which would leave it out": options.compile,
        "under fsdp no process has the whole base": placement.strategy == "fsdp",
    }
    for reason, is_so in reasons.items():
        if is_so:
            value = options.distil if options.distil else f'"{options.random_target}"'
            raise UsageError(f"trainer.{key}: {value} given, but {reason}. Leave trainer.{key} out.")


def _check_opponents(name: str, options: TrainerOptions, placement: Placement, *, has_frozen_base: bool) -> None:
    """Refuse to train opponents of reading where there are none, or where they could not be compared."""
    reasons = {
        f'a model "{name}" with these options has no frozen base': not has_frozen_base,
        "trainer.retrieval is false": not options.retrieval,
        "trainer.max_steps is 0, and they train as long as the run": not options.max_steps,
        "trainer.in_context_sequences is 0, and they are measured on these": not options.in_context_sequences,
        "several processes train, and they would train in one": placement.strategy != "single",
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise UsageError(
                f"trainer.trained_opponents: true given, but {reason}. Leave trainer.trained_opponents out."
            )
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError(
            "trainer.trained_opponents: true needs the library peft. Install it with "
            'pip install "retroflow[peft]", or leave it out.'
        )
