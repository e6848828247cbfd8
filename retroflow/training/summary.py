"""The summary before training, and the description of a run and its machine."""

import platform
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import lightning
import torch

from retroflow.evaluation.report import Report
from retroflow.model.config import RetroConfig
from retroflow.planning.costs import training_flops
from retroflow.planning.plan import Plan
from retroflow.planning.throughput import Throughput, peak_flops_of
from retroflow.protocols import ReportTable, Summary, TrackedRun
from retroflow.runs.checkpoint_files import checkpoint_step, checksum_path, list_checkpoints
from retroflow.runs.folder import RunFolder, write_description
from retroflow.runs.resuming import ResumePoint
from retroflow.training.job import Job
from retroflow.training.lightning_module import drops_retrieval
from retroflow.version import __version__


def plan_of(job: Job) -> Plan:
    """Return the plan of a job, in which everything is known."""
    splits, options = job.splits, job.options
    return Plan(
        options=options,
        optimizer=job.module.optimizer_options,
        placement=job.placement,
        outline=job.module.outline,
        config=job.module.config,
        chunk_length=splits.train_chunks.chunk_length,
        sequence_chunks=splits.sequence_chunks,
        num_neighbours=splits.validation_neighbours.shape[1] if options.retrieval else 0,
        chunks={"train": len(splits.train_chunks), "valid": len(splits.valid_chunks)},
        num_workers=job.num_workers,
    )


def summarise(job: Job, start: ResumePoint) -> str:
    """Print parameters, tokens, steps, memory, device and run folder."""
    return "\n".join([*plan_of(job).lines(start_step=start.step), f"run        {start.run.path}"])


def _machine(job: Job) -> dict[str, Any]:
    """What the run runs on, and the versions on which its numbers depend, as JSON values."""
    return {
        "versions": {
            "retroflow": __version__,
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        "device": job.placement.accelerator,
        "precision": job.placement.precision,
        "num_parameters": job.module.outline.num_parameters,
    }


def describe(job: Job, start: ResumePoint) -> None:
    """Write recipe.yaml and run.json."""
    write_description(start.run, job.identity, _machine(job))


def tracked_run(job: Job, start: ResumePoint) -> TrackedRun:
    """Return the run as its tracker sees it."""
    return tracked(start.run.path, job.identity, _machine(job))


def tracked(folder: Path, identity: Mapping[str, Any], machine: Mapping[str, Any]) -> TrackedRun:
    """Return a run as its tracker sees it.

    Args:
        folder: of the run.
        identity: its "values" and "fingerprints".
        machine: what it runs on, JSON values.
    """
    values = identity["values"]
    retriever, k = values["retriever"]["name"], values["neighbours"]["k"]
    recipe_name = folder.absolute().parent.name  # the recipe of `--resume RUN` is the run's recipe.yaml
    return TrackedRun(
        folder=folder,
        name=f"{recipe_name}-{retriever}-k{k}-{folder.name}",
        group=recipe_name,
        description={"recipe": values, "fingerprints": identity["fingerprints"], **machine},
    )


def final_summary(report: Report, run: RunFolder) -> Summary:
    """Return the tracker's final values: the report's main numbers, and the path of the last checkpoint."""
    values: Summary = {**report.headline()}
    for path in list_checkpoints(run.checkpoints)[:1]:
        values["checkpoint/path"] = str(path.absolute())
        values["checkpoint/step"] = checkpoint_step(path)
        if checksum_path(path).exists():
            values["checkpoint/sha256"] = checksum_path(path).read_text(encoding="utf-8").split()[0]
    return values


def report_tables(report: Report) -> list[ReportTable]:
    """Return the report's tables for a tracker; gains are in nats per token below off, where the overlap is known."""
    values: dict[str, Any] = report.to_json()
    shows_gains = report.overlap_statement is not None
    tables = []
    for name, found in (("losses", values), ("opponents", values.get("opponents"))):
        if found is not None:
            off = found["validation"]["off"]["loss"]
            rows = [
                (mode, measure["loss"], measure["bits_per_byte"], off - measure["loss"] if shows_gains else None)
                for mode, measure in found["validation"].items()
            ]
            tables.append(ReportTable(name, ("retrieval", "nats_per_token", "bits_per_byte", "gain"), rows))
    if report.overlap:
        columns = ("at_least", "below", "chunks", "tokens", "loss_on", "loss_off")
        tables.append(ReportTable("overlap", columns, [astuple(bucket) for bucket in report.overlap]))
    return tables


def throughput_of(job: Job) -> Throughput:
    """Return the throughput of a job; models of plugins have no formula for their FLOPs."""
    config, options, splits = job.module.config, job.options, job.splits
    flops_on, flops_off = None, None
    if isinstance(config, RetroConfig):
        length = splits.sequence_chunks * splits.train_chunks.chunk_length
        k = splits.validation_neighbours.shape[1] if options.retrieval else 0
        flops_on = float(options.batch_size * training_flops(config, length, k))
        flops_off = float(options.batch_size * training_flops(config, length, 0))
    peak = options.peak_flops
    if not peak and job.placement.accelerator == "cuda" and job.placement.uses_bf16:
        peak = peak_flops_of(torch.cuda.get_device_name()) or 0.0
    return Throughput(
        step_flops=flops_on,
        step_flops_off=flops_off,
        is_off=lambda step: options.retrieval and drops_retrieval(job.seed, step, options.retrieval_dropout),
        peak_flops=peak * job.placement.world_size if peak else None,
    )
