"""Facts about a training, stored in every checkpoint, so that later commands report the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retroflow.errors import DamagedDataError
from retroflow.planning.options import TrainerOptions
from retroflow.planning.outline import ModelOutline
from retroflow.planning.placement import Placement


@dataclass(frozen=True)
class TrainingSummary:
    """How a model was trained.

    Attributes:
        steps: optimizer steps done.
        max_steps: optimizer steps of the recipe.
        tokens: predicted tokens seen.
        seconds: of training, without preparation and evaluation.
        cpu_seconds: that the first process spent on it, summed over its threads.
        stopped_by_time: whether `trainer.max_seconds` ended training before `max_steps`.
        retrieval: whether the model was trained with retrieved text.
        num_parameters: of the model.
        num_trained_parameters: of these, not frozen.
        device: "cpu" or "cuda".
        precision: Lightning's word for it.
        seed: the recipe's.
        schedules: "first_step" and "max_steps" of each part of a run that was lengthened; else empty.
    """

    steps: int
    max_steps: int
    tokens: int
    seconds: float
    cpu_seconds: float
    stopped_by_time: bool
    retrieval: bool
    num_parameters: int
    num_trained_parameters: int
    device: str
    precision: str
    seed: int
    schedules: list[dict[str, int]] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        """Whether training came to its end."""
        return self.steps >= self.max_steps or self.stopped_by_time


def facts_of(options: TrainerOptions, placement: Placement, outline: ModelOutline, seed: int) -> dict[str, Any]:
    """What is known of a training before it begins, as JSON values for the run's identity.

    Args:
        options: the trainer section; `retrieval` is False too if the model cannot read neighbours.
        placement: device and precision.
        outline: the model's parameters.
        seed: the recipe's.
    """
    return {
        "seed": seed,
        "max_steps": options.max_steps,
        "max_seconds": options.max_seconds,
        "retrieval": options.retrieval,
        "num_parameters": outline.num_parameters,
        "num_trained_parameters": outline.num_trained_parameters,
        "device": placement.accelerator,
        "precision": placement.precision,
    }


def record_from(
    identity: Mapping[str, Any], *, steps: int, tokens: int, seconds: float, cpu_seconds: float
) -> TrainingSummary:
    """Combine the facts of an identity with the progress of training."""
    facts = dict(identity["training"])
    max_steps, max_seconds = facts["max_steps"], facts.pop("max_seconds")
    return TrainingSummary(
        **facts,
        steps=steps,
        tokens=tokens,
        seconds=round(seconds, 3),
        cpu_seconds=round(cpu_seconds, 3),
        stopped_by_time=steps < max_steps and 0 < max_seconds <= seconds,
        schedules=list(identity.get("schedules", [])),
    )


def record_in(path: Path, head: Mapping[str, Any], *, steps: int) -> TrainingSummary:
    """Read how the model of a checkpoint was trained.

    Args:
        path: the checkpoint, for the error.
        head: its plain values (`checkpoints.read_head`).
        steps: its optimizer steps.

    Raises:
        DamagedDataError: the checkpoint does not contain it.
    """
    try:
        state = head["callbacks"]["StepEnd"]
        tokens, seconds = state["tokens"], state["seconds"]
        cpu_seconds = state.get("cpu_seconds", seconds)
        return record_from(head["retroflow"], steps=steps, tokens=tokens, seconds=seconds, cpu_seconds=cpu_seconds)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedDataError(f"{path}: it does not contain how it was trained ({error!r}); train again.") from error
