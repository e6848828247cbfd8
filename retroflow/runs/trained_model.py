"""Load the model of a run folder for `generate` and `export`, and find a checkpoint for `evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retroflow.components import MODELS, create
from retroflow.corpus.tokenizer import Tokenizer, load_tokenizer
from retroflow.errors import DamagedDataError, RetroflowError, UsageError
from retroflow.model.pretrained import same_random_state
from retroflow.runs.checkpoint_files import checkpoint_step
from retroflow.runs.checkpoints import pick_checkpoint, read_checkpoint, read_head
from retroflow.runs.description import RunDescription, read_run
from retroflow.runs.folder import RunFolder
from retroflow.runs.resuming import differences, identity_at
from retroflow.runs.schedules import schedules_of
from retroflow.store.artifact import open_artifact

MODEL_PREFIX = "model."
"""Prefix of the names of a model's weights in a checkpoint."""


@dataclass(frozen=True)
class TrainedModel:
    """A run's model.

    Attributes:
        config: its configuration.
        model: with the weights of the checkpoint, on the CPU, in evaluation mode.
        tokenizer: the run's.
        run: the description of its run.
        step: optimizer steps of the checkpoint.
    """

    config: Any
    model: Any
    tokenizer: Tokenizer
    run: RunDescription
    step: int


def open_checkpoint(run_folder: Path, wanted: str | None = None) -> tuple[RunDescription, Path]:
    """Find and verify a run's checkpoint, and check that everything in the run folder belongs together.

    Args:
        run_folder: a run folder of `fit`.
        wanted: a step, or a path; None for the newest.

    Raises:
        GenerationError: not a run folder.
        UsageError: there is no such checkpoint, or it is of another run.
        DamagedDataError: the checkpoint is damaged, or run.json or recipe.yaml were edited.
    """
    run = read_run(Path(run_folder))
    folder = RunFolder(run.folder)
    path = pick_checkpoint(folder.checkpoints, wanted)
    if path is None:
        raise UsageError(_without_checkpoint(folder))
    stored = read_head(path).get("retroflow", {})
    here = identity_at(checkpoint_step(path), run.identity, schedules_of(run.identity))
    if found := differences(stored, here):
        listed = "\n".join(f"  {line}" for line in found)
        raise UsageError(
            f'{path}: of another run than "{run_folder}"; these differ between the checkpoint (there) and run.json '
            f"(here):\n{listed}\nPut the run's own files back, or give one of its checkpoints with checkpoint=STEP."
        )
    return run, path


def _without_checkpoint(run: RunFolder) -> str:
    if run.is_finished:
        steps = run.reported_training()["steps"]
        return (
            f"{run.path}: its checkpoints are gone; report.json says that it was trained to step {steps}. Put a "
            f"checkpoint back into {run.checkpoints}, or train it again: retroflow fit --recipe {run.recipe}"
        )
    for path in run.checkpoints.glob("*.ckpt"):
        checkpoint_step(path)  # no name is that of a checkpoint; the error says so
    return f"{run.path} has no checkpoint yet; continue its training with resume='{run.path}'."


def load_trained_model(run_folder: Path, *, checkpoint: str | None = None) -> TrainedModel:
    """Load the model of a run.

    Args:
        run_folder: a run folder of `fit`.
        checkpoint: as for `open_checkpoint`.

    Raises:
        RetroflowError: as `open_checkpoint`, or the weights are not finite.
        GenerationError: its tokenizer's artifact cannot be found.
    """
    run, path = open_checkpoint(run_folder, checkpoint)
    chunks = run.artifact("chunks")
    info = open_artifact(chunks, kind="chunks").info
    section = run.located(run.values["model"])
    config = create(MODELS, section, vocabulary_size=info["vocabulary_size"], chunk_length=info["chunk_length"])
    with same_random_state():
        model = config.build()
    load_checkpoint_weights(model, path, prefix=MODEL_PREFIX)
    return TrainedModel(config, model.eval(), load_tokenizer(str(chunks / "tokenizer")), run, checkpoint_step(path))


def load_checkpoint_weights(model: nn.Module, path: Path, *, prefix: str = "") -> None:
    """Load a checkpoint's weights into a model.

    Args:
        model: gets them.
        path: the checkpoint.
        prefix: what names begin with in the checkpoint and not in the model.

    Raises:
        DamagedDataError: the checkpoint is damaged, or its weights do not fit the model.
        RetroflowError: they are not finite.
    """
    weights = read_checkpoint(path, optimizer=False)["state_dict"]
    for name, value in weights.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise RetroflowError(
                f"{path}: the weights {name} are not finite, so the model is useless. Train a new one with a "
                "lower optimizer.learning_rate or more optimizer.warmup_steps."
            )
    try:
        model.load_state_dict({name.removeprefix(prefix): value for name, value in weights.items()})
    except RuntimeError as error:
        raise DamagedDataError(f"{path}: its weights do not fit the run's recipe ({error}).") from error
