"""`retroflow fit`: prepare -> run folder -> train -> proof.

`fit` is the story, `train` the loop; one training step is `RetroModule.training_step`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

from retroflow.evaluation.report import Report
from retroflow.pipeline.progress import say
from retroflow.recipe import Recipe
from retroflow.training.callbacks import (
    EstimateValidation,
    LogMetrics,
    SeedEachBatch,
    StopAtStepEnd,
    WriteCheckpoints,
)
from retroflow.training.checkpoints import AtomicIO, discard_after
from retroflow.training.data_module import RetroData
from retroflow.training.job import Job, make_job
from retroflow.training.metrics import MetricsLog
from retroflow.training.neighbour_examples import neighbour_examples
from retroflow.training.progress import TrainingProgress
from retroflow.training.proof import estimate
from retroflow.training.quiet import quiet_lightning
from retroflow.training.resuming import Start, choose_start
from retroflow.training.stopping import StopRequests
from retroflow.training.summary import describe, final_summary, summarise, throughput_of, tracked_run
from retroflow.training.verdict import Record, judge, load_trained, record_of


@dataclass(frozen=True)
class FitResult:
    """What `fit` leaves.

    Attributes:
        run_folder: where everything of the run lies.
        steps: optimizer steps done.
        report: the proof.
    """

    run_folder: Path
    steps: int
    report: Report


def show_nothing(result: FitResult) -> None:
    """Show nothing of a result."""


def fit(recipe: Recipe, *, resume: Path | None = None, show: Callable[[FitResult], None] = show_nothing) -> FitResult:
    """Turn a recipe into a trained and judged model.

    Args:
        recipe: the checked recipe.
        resume: a run folder, a checkpoint, or `resuming.LAST` for the recipe's last unfinished run; None starts anew.
        show: called with the result before the tracker is waited for, which may still have to send something.

    Raises:
        Preempted: SIGTERM came; a checkpoint is written.
        Interrupted: SIGINT came; a checkpoint is written.
        RetroflowError: whatever else a user can cause; see each step.
    """
    with StopRequests() as requests, quiet_lightning():
        with requests.at_once("stopped while preparing; the same command goes on where it stopped"):
            job = make_job(recipe)
        start = choose_start(recipe, job.identity, runs_folder=job.runs_folder, resume=resume, say=say)
        with start.run.lock():
            describe(job, start)
            say(summarise(job, start))
            job.tracker.start(tracked_run(job, start))
            if job.options.retrieval and start.step == 0:
                job.tracker.show_neighbours(neighbour_examples(job.splits), 0)
            record = load_trained(job, start) or train(job, start, requests)
            requests.stop_if_requested(f"stopped at step {record.steps} with a checkpoint; go on with --resume")
            report = judge(job, record, start.run, requests)
            result = FitResult(run_folder=start.run.path, steps=record.steps, report=report)
            show(result)
            if job.options.retrieval:
                job.tracker.show_neighbours(neighbour_examples(job.splits, report), record.steps)
            job.tracker.finish(final_summary(report, start.run))
    return result


def train(job: Job, start: Start, requests: StopRequests) -> Record:
    """Train from `start` to the last step, a stop signal or the end of the time.

    Raises:
        RetroflowError: the loss is not finite, or a file cannot be written.
    """
    discard_after(start.run.checkpoints, start.step)
    log = MetricsLog(start.run.path, step=start.step)
    progress = TrainingProgress(job.options.max_steps)
    metrics = LogMetrics(log, job.tracker, progress, throughput_of(job), job.options)
    stop = StopAtStepEnd(requests, job.options.max_seconds)
    callbacks: list[pl.Callback] = [
        SeedEachBatch(job.seed),
        metrics,
        EstimateValidation(lambda: estimate(job), log, job.tracker, progress, job.options.validate_every),
        stop,
        WriteCheckpoints(start.run, log, job.options, job.identity),
    ]
    data = RetroData(
        job.splits.training(retrieval=job.options.retrieval), job.options, seed=job.seed, num_workers=job.num_workers
    )
    trainer = make_trainer(job, start, callbacks)
    try:
        trainer.fit(job.module, datamodule=data, ckpt_path=start.checkpoint, weights_only=True)
    except (SIGTERMException, SystemExit):
        # A second SIGINT, or a signal before the first step, which meets the handlers of Lightning.
        requests.stop_if_requested("stopped at once; --resume goes on from the last checkpoint")
        raise
    finally:
        progress.stop()
        log.close()
    return record_of(job, steps=trainer.global_step, tokens=metrics.tokens, seconds=stop.seconds_of_training)


def make_trainer(job: Job, start: Start, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Make Lightning's trainer, with everything off that this room does itself (docs/training.md says why)."""
    return pl.Trainer(
        accelerator=job.placement.accelerator,
        strategy=job.placement.strategy,
        devices=job.placement.devices,
        precision=job.placement.precision,  # type: ignore[arg-type]
        max_steps=job.options.max_steps,
        accumulate_grad_batches=job.options.accumulate,
        callbacks=callbacks,
        plugins=[AtomicIO()],
        default_root_dir=start.run.path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
