"""The model of a run folder, outside training: for `generate` and `export`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroflow.components import MODELS, create
from retroflow.corpus.tokenizer import Tokenizer, load_tokenizer
from retroflow.errors import DamagedDataError, RecipeError
from retroflow.generation.run_description import RunDescription, read_run
from retroflow.model.pretrained import same_random_state
from retroflow.store.artifact import open_artifact
from retroflow.training.checkpoints import checkpoint_step, newest_verified, read_checkpoint
from retroflow.training.resuming import refuse_other_recipe
from retroflow.training.run_folder import RunFolder

MODEL_PREFIX = "model."
"""What the training step puts before the names of its model's weights."""


@dataclass(frozen=True)
class TrainedModel:
    """A run's model.

    Attributes:
        config: the registry's configuration that built it.
        model: with the weights of the checkpoint, on the CPU, in evaluation mode.
        tokenizer: the run's.
        run: what it was trained with.
        step: optimizer steps of the checkpoint.
    """

    config: Any
    model: Any
    tokenizer: Tokenizer
    run: RunDescription
    step: int


def load_trained_model(run_folder: Path, *, say: Callable[[str], None]) -> TrainedModel:
    """Load a run's newest intact checkpoint.

    Args:
        run_folder: what `fit` made.
        say: told of damaged checkpoints that are passed over.

    Raises:
        GenerationError: not a run folder, or its tokenizer's artifact is not there.
        RecipeError: it has no checkpoint yet, or one of another recipe.
        DamagedDataError: every checkpoint is damaged.
    """
    run = read_run(Path(run_folder))
    path = newest_verified(RunFolder(run.folder).checkpoints, say=say)
    if path is None:
        raise RecipeError(f"{run_folder}: has no checkpoint yet; go on training with --resume {run_folder}")
    chunks = run.artifact("chunks")
    info = open_artifact(chunks, kind="chunks").info
    checkpoint = read_checkpoint(path, optimizer=False)
    refuse_other_recipe(path, checkpoint.get("retroflow", {}), run.identity)
    config = create(
        MODELS, run.values["model"], vocabulary_size=info["vocabulary_size"], chunk_length=info["chunk_length"]
    )
    with same_random_state():
        model = config.build()
    state = {key.removeprefix(MODEL_PREFIX): value for key, value in checkpoint["state_dict"].items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DamagedDataError(f"{path}: its weights do not fit the run's recipe ({error})") from error
    return TrainedModel(config, model.eval(), load_tokenizer(str(chunks / "tokenizer")), run, checkpoint_step(path))
