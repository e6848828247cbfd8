"""The schedules of a run: a run that is resumed with a larger `trainer.max_steps` has more than one.

The learning rate is a function of the step and of `trainer.max_steps`, so a run that was lengthened once has two
schedules, one after the other. A run's identity lists them under "schedules" if there is more than one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from retroflow.planning.options import OptimizerOptions
from retroflow.planning.schedule import learning_rate_factor

_KEY = "schedules"


@dataclass(frozen=True)
class Schedule:
    """A part of a run.

    Attributes:
        first_step: optimizer steps that were done when it began.
        max_steps: `trainer.max_steps` from then on.
    """

    first_step: int
    max_steps: int


def schedules_of(identity: Mapping[str, Any]) -> tuple[Schedule, ...]:
    """Return the schedules of a run, oldest first, from the identity in its run.json or in a checkpoint."""
    if _KEY in identity:
        return tuple(Schedule(**values) for values in identity[_KEY])
    trainer = identity["values"].get("trainer", {})
    return (Schedule(0, trainer["max_steps"]),) if "max_steps" in trainer else ()


def with_schedules(identity: Mapping[str, Any], schedules: Sequence[Schedule]) -> dict[str, Any]:
    """Return an identity with its run's schedules."""
    plain = {key: value for key, value in identity.items() if key != _KEY}
    return plain | ({_KEY: [asdict(schedule) for schedule in schedules]} if len(schedules) > 1 else {})


def lengthened(schedules: Sequence[Schedule], *, step: int, max_steps: int) -> tuple[Schedule, ...]:
    """Return the schedules of a run that continues from `step` with `max_steps`."""
    kept = [schedule for schedule in schedules if schedule.first_step < step]
    if kept and kept[-1].max_steps == max_steps:
        return tuple(kept)
    return (*kept, Schedule(step, max_steps))


def in_force(schedules: Sequence[Schedule], step: int) -> Schedule:
    """Return the schedule of optimizer step number `step`, counted from 1."""
    return next((one for one in reversed(schedules) if one.first_step < step), schedules[0])


def describe_last(schedules: Sequence[Schedule], optimizer: OptimizerOptions) -> str:
    """Describe the change of the learning rate at the beginning of the last schedule."""
    before, new = schedules[-2], schedules[-1]

    def rate(step: int, max_steps: int) -> str:
        share = learning_rate_factor(
            step, warmup_steps=optimizer.warmup_steps, max_steps=max_steps, final_share=optimizer.final_share
        )
        return f"{optimizer.learning_rate * share:.3g}"

    return (
        f"a new schedule from step {new.first_step:,}: trainer.max_steps is {new.max_steps:,} and was "
        f"{before.max_steps:,}. The learning rate was {rate(new.first_step - 1, before.max_steps)} in step "
        f"{new.first_step:,}, is {rate(new.first_step, new.max_steps)} in the next one, and ends at "
        f"{rate(new.max_steps - 1, new.max_steps)}"
    )
