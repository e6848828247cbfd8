"""Measure a trained model and write report.json, at the end of `fit`; `retroflow evaluate` measures in the same way."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.console import progress
from retroflow.data.windows import WindowTable
from retroflow.distributed.stop_signals import StopRequests
from retroflow.evaluation.measuring import measure_report, sample_of, sequences_to_measure
from retroflow.evaluation.report import Lookups, Report
from retroflow.evaluation.trained_opponents import add_trained
from retroflow.pipeline.lookups import look_up
from retroflow.runs.checkpoint_files import checkpoint_path, checksum_path
from retroflow.runs.checkpoints import read_head
from retroflow.runs.folder import RunFolder, write_report
from retroflow.runs.record import TrainingSummary, record_from, record_in
from retroflow.runs.resuming import ResumePoint
from retroflow.runs.trained_model import load_checkpoint_weights
from retroflow.training.job import Job


def load_trained(job: Job, start: ResumePoint, *, as_it_is: bool = False) -> TrainingSummary | None:
    """Load the weights of `start` if there is nothing left to train.

    Args:
        job: its module gets the weights.
        start: where training would continue.
        as_it_is: also load the weights of an unfinished training.

    Returns:
        How the model was trained; None if training has to continue.
    """
    if start.checkpoint is None:
        return None
    record = record_in(start.checkpoint, read_head(start.checkpoint), steps=start.step)
    # The job decides whether there is more to do: `trainer.max_seconds` may have changed.
    progress = {"steps": start.step, "tokens": record.tokens}
    now = record_from(job.identity, **progress, seconds=record.seconds, cpu_seconds=record.cpu_seconds)
    if not (as_it_is or now.is_finished):
        return None
    job.module.configure_model()
    load_checkpoint_weights(job.module, start.checkpoint)
    return replace(record, max_steps=now.max_steps, stopped_by_time=now.stopped_by_time)


def write_final_report(
    job: Job,
    record: TrainingSummary,
    run: RunFolder,
    requests: StopRequests,
    *,
    check: Callable[[], None] = lambda: None,
) -> Report:
    """Measure the module's model over the validation split and write report.json.

    Args:
        job: its module has the weights.
        record: how it was trained.
        run: where the report is written to.
        requests: may stop it.
        check: called before the report is written; may raise.

    Raises:
        Preempted: SIGTERM came; the training's checkpoint is kept, resuming evaluates again.
        Interrupted: the same with SIGINT.
        RetroflowError: a loss is not finite; no report is written.
    """
    report = measure_model(job, record, checkpoint_path(run.checkpoints, record.steps), requests)
    check()
    write_report(run.report, report.to_json())
    return report


def measure_model(
    job: Job,
    record: TrainingSummary,
    checkpoint: Path,
    requests: StopRequests,
    *,
    overrides: Mapping[str, Any] | None = None,
    remedy: str = "continue with resume='last'",
) -> Report:
    """Measure the module's model over the validation split.

    Args:
        job: its module has the weights.
        record: how it was trained.
        checkpoint: source of the weights, for the report.
        requests: may stop it.
        overrides: dotted keys in which the measurement differs from the training's recipe, for the report.
        remedy: what to do after it was stopped.

    Raises:
        RetroflowError: as `write_final_report`.
    """
    job.module.model.to(job.placement.device)
    digest = _digest_of(checkpoint)

    def stop_if_requested() -> None:
        requests.stop_if_requested(f"stopped while evaluating; {remedy}")

    began = time.perf_counter()
    windows = _looked_up(job, stop_if_requested)
    seconds = time.perf_counter() - began
    with progress("evaluating", sequences_to_measure(job), "sequences") as shown:

        def advance(sequences: int) -> None:
            stop_if_requested()
            shown(sequences)

        report = measure_report(job, training=asdict(record), advance=advance, windows=windows)
    if windows is not None:
        report = replace(report, lookups=Lookups(windows.step, windows.ids.shape[2], seconds))
    if job.options.trained_opponents and report.opponents is not None:
        opponents = add_trained(
            job,
            report.opponents,
            # On a CPU that other work shares, a second of the clock may be any part of one of work.
            seconds=record.cpu_seconds if job.placement.accelerator == "cpu" else record.seconds,
            num_weights=record.num_trained_parameters,
            stop=lambda: requests.stop_if_requested(f"stopped while training opponents; {remedy}, which begins anew"),
        )
        report = replace(report, opponents=opponents)
    measured = {
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": digest,
        "step": record.steps,
        "overrides": json.loads(json.dumps(dict(overrides or {}), default=str)),
    }
    return replace(report, measured=measured)


def _looked_up(job: Job, check: Callable[[], None]) -> WindowTable | None:
    """Look up the windows of the measured sequences; None where the prepared neighbours of the chunks are read."""
    if job.step is None or job.search is None or not job.options.retrieval:
        return None
    sample = sample_of(job)
    sequences = np.arange(len(job.splits.validation()), dtype=np.int64) if sample is None else sample
    m = job.splits.valid_chunks.chunk_length
    windows = len(sequences) * ((job.splits.sequence_chunks - 1) * m // job.step + 1)
    search = job.search()
    with progress(f"looking up every {job.step} tokens", windows, "windows") as shown:

        def advance(count: int) -> None:
            check()
            shown(count)

        k = job.splits.validation_neighbours.shape[1]
        return look_up(search, job.splits, sequences, step=job.step, k=k, advance=advance)


def _digest_of(checkpoint: Path) -> str:
    return checksum_path(checkpoint).read_text(encoding="utf-8").split()[0]
