"""From a trained model to report.json; for `fit` at its end and for `retroflow evaluate` afterwards."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from retroflow.components import recipe_schema
from retroflow.errors import RecipeError
from retroflow.evaluation.report import Report
from retroflow.pipeline.progress import progress, say
from retroflow.recipe import load
from retroflow.training.checkpoints import newest_verified, read_checkpoint, read_head
from retroflow.training.job import Job, make_job
from retroflow.training.proof import prove, sequences_to_measure
from retroflow.training.quiet import quiet_lightning
from retroflow.training.resuming import Start, refuse_other_weights
from retroflow.training.run_folder import RunFolder, write_json
from retroflow.training.schedules import history_of
from retroflow.training.stopping import StopRequests

_ALONE = ("trainer.strategy=auto", "trainer.devices=1", "trainer.nodes=1")
"""Whatever a model was trained on, one process evaluates it."""


@dataclass(frozen=True)
class Record:
    """How a model was trained.

    Attributes:
        steps: optimizer steps done.
        max_steps: optimizer steps of the recipe.
        tokens: predicted tokens seen.
        seconds: of training, without preparation and evaluation.
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
    stopped_by_time: bool
    retrieval: bool
    num_parameters: int
    num_trained_parameters: int
    device: str
    precision: str
    seed: int
    schedules: list[dict[str, int]] = field(default_factory=list)


def record_of(job: Job, *, steps: int, tokens: int, seconds: float) -> Record:
    """Put together how a job's model was trained."""
    return Record(
        steps=steps,
        max_steps=job.options.max_steps,
        tokens=tokens,
        seconds=round(seconds, 3),
        stopped_by_time=steps < job.options.max_steps and 0 < job.options.max_seconds <= seconds,
        retrieval=job.options.retrieval,
        num_parameters=job.module.outline.num_parameters,
        num_trained_parameters=job.module.outline.num_trained_parameters,
        device=job.placement.accelerator,
        precision=job.placement.precision,
        seed=job.seed,
        schedules=history_of(job.identity),
    )


def load_trained(job: Job, start: Start, *, as_it_is: bool = False) -> Record | None:
    """Load the weights of `start` if there is nothing left to train.

    Args:
        job: its module gets the weights.
        start: where training would go on.
        as_it_is: load the weights of an unfinished training too.

    Returns:
        How the model was trained; None if training has to go on.
    """
    if start.checkpoint is None:
        return None
    head = read_head(start.checkpoint)
    states: dict[str, Any] = head["callbacks"]
    seconds, tokens = states["StopAtStepEnd"]["seconds"], states["LogMetrics"]["tokens"]
    record = record_of(job, steps=start.step, tokens=tokens, seconds=seconds)
    if not (as_it_is or record.steps >= record.max_steps or record.stopped_by_time):
        return None
    if history := history_of(head["retroflow"]):
        record = replace(record, schedules=history)
    job.module.configure_model()
    job.module.load_state_dict(read_checkpoint(start.checkpoint, optimizer=False)["state_dict"])
    return record


def judge(
    job: Job, record: Record, run: RunFolder, requests: StopRequests, *, check: Callable[[], None] = lambda: None
) -> Report:
    """Measure the module's model over the validation split and write report.json.

    Args:
        job: its module has the weights.
        record: how it was trained.
        run: where the report is written to.
        requests: may stop it.
        check: called before the report is written; may raise.

    Raises:
        Preempted: SIGTERM came; the training's checkpoint stays, `--resume` judges again.
        Interrupted: the same with SIGINT.
    """
    job.module.model.to(job.placement.device)
    with progress("evaluating", sequences_to_measure(job), "sequences") as shown:

        def advance(sequences: int) -> None:
            requests.stop_if_requested("stopped while evaluating; go on with --resume")
            shown(sequences)

        report = prove(job, training=asdict(record), advance=advance)
    check()
    write_json(run.report, report.to_json())
    return report


def evaluate(run_folder: Path, overrides: Sequence[str] = ()) -> Report:
    """Make the report of a run again from its newest intact checkpoint.

    Args:
        run_folder: what `fit` made.
        overrides: `key=value` changes to the run's recipe, such as trainer.device=cpu.

    Raises:
        RecipeError: not a run folder, or one without a checkpoint, or a recipe that does not fit the checkpoint.
    """
    run = RunFolder(run_folder)
    if not run.recipe.exists():
        raise RecipeError(f"{run_folder}: not a run folder (it has no recipe.yaml); give the folder that fit printed")
    recipe = load(run.recipe, [*_ALONE, *overrides], schema=recipe_schema())
    with StopRequests() as requests, quiet_lightning():
        checkpoint = newest_verified(run.checkpoints, say=say)
        if checkpoint is None:
            raise RecipeError(f"{run_folder}: has no checkpoint yet; go on training with --resume {run_folder}")
        with requests.at_once("stopped while preparing; the same command goes on where it stopped"):
            job = make_job(recipe)
        refuse_other_weights(checkpoint, job.identity)
        record = load_trained(job, Start(run, checkpoint), as_it_is=True)
        assert record is not None
        return judge(job, record, run, requests)
