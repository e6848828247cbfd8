"""`retroflow fit`: prepare -> run folder -> train -> evaluate.

`fit` has the steps of the command, `train` starts the loop; one training step is `RetroModule.training_step`.
"""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

from retroflow.console import say
from retroflow.distributed.launching import launch_ranks
from retroflow.distributed.parent_death import end_with_parent
from retroflow.distributed.ranks import ALONE, Ranks, ranks_of_this_process
from retroflow.distributed.stop_signals import StopRequests
from retroflow.errors import Interrupted, Preempted, RankEnded
from retroflow.evaluation.measuring import estimate
from retroflow.evaluation.report import Report
from retroflow.evaluation.stored_report import read_report
from retroflow.pipeline.prepare import Prepared, find_prepared
from retroflow.planning.options import TrainerOptions
from retroflow.planning.placement import place
from retroflow.planning.plan import check_memory, plan_of_recipe
from retroflow.recipe import Recipe
from retroflow.runs.checkpoint_files import checkpoint_path
from retroflow.runs.checkpoints import discard_after, sweep
from retroflow.runs.folder import RunFolder
from retroflow.runs.held_folder import HeldFolder
from retroflow.runs.metrics import MetricsLog, read_metrics
from retroflow.runs.record import TrainingSummary, record_from
from retroflow.runs.resuming import ResumePoint, choose_start
from retroflow.runs.schedules import describe_last
from retroflow.training.callbacks import Metrics, StepEnd, Stopping
from retroflow.training.checkpoint_io import AtomicIO
from retroflow.training.data_module import RetroData, explain_lost_data_workers
from retroflow.training.final_report import load_trained, write_final_report
from retroflow.training.job import Job, bound, make_job
from retroflow.training.lightning_environment import RanksEnvironment
from retroflow.training.lightning_output import only_rank_zero_prints, quiet_lightning
from retroflow.training.neighbour_rows import neighbour_examples
from retroflow.training.progress import TrainingProgress
from retroflow.training.strategies import make_strategy
from retroflow.training.summary import (
    describe,
    final_summary,
    plan_of,
    report_tables,
    summarise,
    throughput_of,
    tracked_run,
)

LOCK_SECONDS = 10.0
"""Seconds to wait for the run lock when resuming; processes of a killed run may hold it briefly."""

_REPEATED_LINES = 200
"""Lines of metrics that are sent to a resumed run's tracker again; a killed one may not have written the last."""

_WHILE_PREPARING = "stopped while preparing; the same command continues where it stopped"


@dataclass(frozen=True)
class FitResult:
    """The result of `fit`.

    Attributes:
        run_folder: of the run.
        steps: optimizer steps done.
        report: of the final evaluation.
    """

    run_folder: Path
    steps: int
    report: Report


def fit(
    recipe: Recipe,
    *,
    resume: Path | None = None,
    prepared: Prepared | None = None,
    show: Callable[[FitResult], None] | None = None,
    ignore_memory: bool = False,
) -> FitResult | None:
    """Turn a recipe into a trained and evaluated model.

    Args:
        recipe: the checked recipe.
        resume: a run folder, a checkpoint, or `resuming.LAST` for the recipe's last unfinished run; None starts anew.
        prepared: the recipe's artifacts, if they are known.
        show: called with the result before the tracker finishes, which may take long. With several processes it is
            called in rank 0 and must be picklable.
        ignore_memory: train even if this machine has less memory than the run needs by formula.

    Returns:
        The result; None on ranks other than 0.

    Raises:
        Preempted: SIGTERM came; a checkpoint is written.
        Interrupted: SIGINT came; a checkpoint is written.
        RetroflowError: any other error that a user can cause; see each step.
    """
    ranks = ranks_of_this_process()
    with explain_lost_data_workers(ranks, loading=False), StopRequests() as requests, quiet_lightning():
        if ranks.world_size > 1:
            return _fit_as_rank(recipe, resume, prepared, show, ignore_memory, ranks, requests)
        with requests.at_once(_WHILE_PREPARING):
            if not ignore_memory:
                check_memory(plan_of_recipe(recipe, place(TrainerOptions(**recipe.section("trainer")), ranks)))
            job = make_job(recipe)
        if not ignore_memory:
            check_memory(plan_of(job))  # with the vocabulary, which is known now
        if job.placement.world_size > 1:
            task = partial(fit, recipe, resume=resume, prepared=job.prepared, show=show, ignore_memory=ignore_memory)
            launched: FitResult = launch_ranks(task, size=job.placement.world_size, requests=requests)
            return launched
        with ExitStack() as held:
            start = _begin(recipe, job, resume, held)
            if start.is_finished:
                return _show_again(start, show)
            job = bound(job, start)
            record = load_trained(job, start) or train(job, start, requests)
            return _evaluate(job, record, start, requests, show)


def _fit_as_rank(
    recipe: Recipe,
    resume: Path | None,
    prepared: Prepared | None,
    show: Callable[[FitResult], None] | None,
    ignore_memory: bool,
    ranks: Ranks,
    requests: StopRequests,
) -> FitResult | None:
    """Train as one of several processes; rank 0 measures the model alone, after the others have ended."""
    if ranks.launcher == "torchrun":
        end_with_parent(os.getppid())
    options = TrainerOptions(**recipe.section("trainer"))
    placement = place(options, ranks)
    with ExitStack() as held:
        with only_rank_zero_prints(ranks), ranks.joined(placement.accelerator, seconds=options.timeout_seconds):
            with requests.at_once(_WHILE_PREPARING):
                found = ranks.agree(lambda: prepared or find_prepared(recipe))
                job = make_job(recipe, ranks=ranks, prepared=found)
            if not ignore_memory:
                check_memory(plan_of(job))
            start = ranks.agree(lambda: _begin(recipe, job, resume, held))
            if start.is_finished:
                return _show_again(start, show) if ranks.is_first else None
            job = bound(job, start)
            record = load_trained(job, start) or train(job, start, requests, ranks)
        if ranks.is_first:
            return _evaluate(job, record, start, requests, show)
    if requests.is_requested:  # rank 0 reports the error
        raise RankEnded(Interrupted.exit_code if requests.signal_number == signal.SIGINT else Preempted.exit_code)
    return None


def _begin(recipe: Recipe, job: Job, resume: Path | None, held: ExitStack) -> ResumePoint:
    """Choose or make the run, add its lock to `held`, and print the summary."""

    def hold(run: RunFolder) -> None:
        held.enter_context(run.lock(seconds=LOCK_SECONDS if resume else 0.0))

    start = choose_start(recipe, job.identity, runs_folder=job.runs_folder, resume=resume, say=say, hold=hold)
    if start.is_finished:
        return start
    job = bound(job, start)
    discard_after(start.run.checkpoints, start.step)
    sweep(start.run.checkpoints, keep=job.options.keep_checkpoints)  # remains of a kill
    describe(job, start)
    say(summarise(job, start))
    if len(start.schedules) > 1 and start.schedules[-1].first_step == start.step:
        say(describe_last(start.schedules, job.module.optimizer_options))
    job.tracker.start(tracked_run(job, start))
    lines = [line for line in read_metrics(start.run.path) if line["step"] <= start.step]
    for line in lines[-_REPEATED_LINES:]:
        job.tracker.log({name: value for name, value in line.items() if name != "step"}, line["step"])
    if job.options.retrieval and start.step == 0:
        job.tracker.show_neighbours(neighbour_examples(job.splits), 0)
    return start


def _show_again(start: ResumePoint, show: Callable[[FitResult], None] | None) -> FitResult:
    report = read_report(start.run.path).report
    result = FitResult(run_folder=start.run.path, steps=int(report.training["steps"]), report=report)
    if show is not None:
        show(result)
    return result


def _evaluate(
    job: Job,
    record: TrainingSummary,
    start: ResumePoint,
    requests: StopRequests,
    show: Callable[[FitResult], None] | None,
) -> FitResult:
    """Evaluate the trained model, in one process."""
    requests.stop_if_requested(f"stopped at step {record.steps} with a checkpoint; continue with resume='last'")
    if job.placement.strategy == "fsdp":  # the other ranks have ended, and this one has only a shard of the model
        job.module.release()
        load_trained(job, ResumePoint(start.run, checkpoint_path(start.run.checkpoints, record.steps)), as_it_is=True)
    with HeldFolder(start.run.path) as folder:
        report = write_final_report(job, record, start.run, requests, check=folder.check)
    result = FitResult(run_folder=start.run.path, steps=record.steps, report=report)
    if show is not None:
        show(result)
    if job.options.retrieval:
        job.tracker.show_neighbours(neighbour_examples(job.splits, report), record.steps)
    job.tracker.show_report(report_tables(report), record.steps)
    job.tracker.finish(final_summary(report, start.run))
    return result


def train(job: Job, start: ResumePoint, requests: StopRequests, ranks: Ranks = ALONE) -> TrainingSummary:
    """Train from `start` to the last step, a stop signal or the end of the time.

    Lightning's loop calls `RetroModule.training_step` for every batch, and `StepEnd` at the end of a step, whose lines
    are the order of everything else. Called on all ranks; only rank 0 writes.

    Raises:
        RetroflowError: the loss is not finite, or a file cannot be written.
    """
    log = None
    if ranks.is_first:
        log = MetricsLog(start.run.path, step=start.step)
    progress = TrainingProgress(job.options.max_steps)
    metrics = Metrics(log, job.tracker, progress, throughput_of(job), ranks)
    stopping = Stopping(requests, job.options.max_seconds, ranks)
    step_end = StepEnd(
        metrics, lambda: estimate(job, ranks), stopping, job.options, start.run.checkpoints, job.identity
    )
    sequences = job.splits.training(
        retrieval=job.options.retrieval, random_share=job.options.random_neighbours, seed=job.seed
    )
    data = RetroData(sequences, job.options, seed=job.seed, num_workers=job.num_workers)
    trainer = make_trainer(job, start, [step_end], ranks)
    # FSDP needs a process group even for one process.
    is_grouped = job.placement.strategy == "fsdp"
    seconds = job.options.timeout_seconds
    group = ranks.joined(job.placement.accelerator, seconds=seconds) if is_grouped else nullcontext()
    try:
        with group, explain_lost_data_workers(ranks):
            trainer.fit(job.module, datamodule=data, ckpt_path=start.checkpoint, weights_only=True)
            if job.options.max_steps == 0:  # no step has ended and written one
                step_end.write_checkpoint(trainer)
    except (SIGTERMException, SystemExit):
        # A second SIGINT, or a signal before the first step, while Lightning's handlers are installed.
        requests.stop_if_requested("stopped at once; resume='last' continues from the last checkpoint")
        raise
    finally:
        progress.stop()
        if log is not None:
            log.close()
    return record_from(
        job.identity,
        steps=trainer.global_step,
        tokens=metrics.tokens,
        seconds=stopping.seconds,
        cpu_seconds=stopping.cpu_seconds,
    )


def make_trainer(job: Job, start: ResumePoint, callbacks: list[pl.Callback], ranks: Ranks = ALONE) -> pl.Trainer:
    """Make Lightning's trainer, without the parts that this room does itself."""
    placement = job.placement
    trainer = pl.Trainer(
        accelerator=placement.accelerator,
        strategy=make_strategy(placement, job.options),
        devices=placement.devices,
        num_nodes=placement.nodes,
        precision=placement.precision,  # type: ignore[arg-type]
        max_steps=job.options.max_steps,
        accumulate_grad_batches=job.options.accumulate,
        callbacks=callbacks,
        plugins=[AtomicIO(), RanksEnvironment(ranks)] if placement.strategy != "single" else [AtomicIO()],
        default_root_dir=start.run.path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    # Its SIGTERM handler broadcasts to busy ranks, and hangs.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer
