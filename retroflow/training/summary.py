"""What is about to happen, in a few lines, and the record of what it happened on."""

import json
import platform
from typing import Any

import lightning
import torch

import retroflow
from retroflow.training.job import Job
from retroflow.training.resuming import Start
from retroflow.training.run_folder import write_json
from retroflow.training.trackers import TrackedRun


def summarise(job: Job, start: Start) -> str:
    """Say parameters, tokens, steps, device and run folder."""
    options, splits, outline = job.options, job.splits, job.module.outline
    sequence_tokens = splits.sequence_chunks * splits.train_chunks.chunk_length
    step_tokens = options.batch_size * sequence_tokens
    corpus_tokens = len(splits.train_chunks) * splits.train_chunks.chunk_length
    passes = options.max_steps * step_tokens / corpus_tokens
    retrieval = (
        f"{outline.num_retrieval_parameters:,} of them for retrieval" if options.retrieval else "retrieval not used"
    )
    lines = [
        f"model      {outline.num_parameters:,} parameters, {retrieval}",
        f"data       {len(splits.train_chunks):,} training chunks, {len(splits.valid_chunks):,} validation chunks",
        f"training   {options.max_steps:,} steps x {step_tokens:,} tokens = {options.max_steps * step_tokens:,} "
        f"({passes:.1f} passes over the corpus)" + (f", from step {start.step:,}" if start.step else ""),
        f"device     {job.placement.accelerator}, {'bf16' if job.placement.uses_bf16 else 'fp32'}, "
        f"{torch.get_num_threads()} CPU threads",
        f"run        {start.run.path}",
    ]
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Versions that a run's numbers depend on."""
    return {
        "retroflow": retroflow.__version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def description(job: Job) -> dict[str, Any]:
    """What the run is and what it runs on, as JSON values."""
    return {
        "identity": job.identity,
        "recipe": json.loads(job.identity["values"]),
        "fingerprints": json.loads(job.identity["fingerprints"]),
        "versions": versions(),
        "device": job.placement.accelerator,
        "precision": job.placement.precision,
        "num_parameters": job.module.outline.num_parameters,
    }


def describe(job: Job, start: Start) -> None:
    """Write run.json."""
    write_json(start.run.description, description(job))


def tracked_run(job: Job, start: Start) -> TrackedRun:
    """What the tracker is told."""
    values = json.loads(job.identity["values"])
    retriever, k = values["retriever"]["name"], values["neighbours"]["k"]
    return TrackedRun(
        folder=start.run.path,
        name=f"{job.name}-{retriever}-k{k}-{start.run.path.name}",
        group=job.name,
        description={key: value for key, value in description(job).items() if key != "identity"},
    )
