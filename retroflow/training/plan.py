"""What a run is going to be, said before it begins: by `fit` of what it has, by `fit --dry-run` of what is known."""

from dataclasses import dataclass
from typing import Any

import torch

from retroflow.model.config import RetroConfig
from retroflow.training.job import Job
from retroflow.training.lightning_module import ModelOutline
from retroflow.training.memory import MemoryEstimate, Share, estimate_memory
from retroflow.training.optimizers import schedule_share
from retroflow.training.options import OptimizerOptions, TrainerOptions
from retroflow.training.strategies import Placement


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run before it begins.

    Attributes:
        options: the trainer section; `retrieval` is False too if the model cannot read neighbours.
        optimizer: the optimizer section.
        placement: device, precision and processes.
        outline: the model's parameters.
        config: what the model is built from.
        chunk_length: m.
        sequence_chunks: chunks of a sequence.
        num_neighbours: of a chunk; 0 without retrieval.
        chunks: split -> number of chunks, None if that is not known yet.
        is_estimate: whether `chunks` is an estimate.
    """

    options: TrainerOptions
    optimizer: OptimizerOptions
    placement: Placement
    outline: ModelOutline
    config: Any
    chunk_length: int
    sequence_chunks: int
    num_neighbours: int
    chunks: dict[str, int] | None
    is_estimate: bool = False

    @property
    def sequence_tokens(self) -> int:
        """Tokens of a sequence."""
        return self.sequence_chunks * self.chunk_length

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run, padding included."""
        return self.options.max_steps * self.options.batch_size * self.sequence_tokens

    @property
    def memory(self) -> MemoryEstimate | None:
        """What a device needs; None for models without a formula."""
        if not isinstance(self.config, RetroConfig):
            return None
        world_size = self.placement.world_size
        share = Share(
            sequences=max(1, self.options.batch_size // (world_size * self.options.accumulate)),
            length=self.sequence_tokens,
            num_neighbours=self.num_neighbours,
            bf16=self.placement.uses_bf16,
            shards=world_size if self.placement.strategy == "fsdp" else 1,
            buckets=self.placement.strategy == "ddp",
            checkpointing=self.options.activation_checkpointing,
        )
        return estimate_memory(self.config, self.outline.sizes, share)

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint: every trained weight and two means of AdamW, float32."""
        return 12 * self.outline.num_trained_parameters

    def lines(self, *, start_step: int = 0) -> list[str]:
        """Describe the run, a fact a line."""
        memory = self.memory
        return [
            f"model      {self._model()}",
            f"data       {self._data()}",
            f"training   {self._training(start_step)}",
            f"device     {self._device()}",
            f"memory     {memory if memory is not None else 'not known for this kind of model'}",
            *(f"note       {note}" for note in self._notes()),
        ]

    def _model(self) -> str:
        reading = (
            f"{self.outline.num_retrieval_parameters:,} of them for retrieval"
            if self.options.retrieval
            else "retrieval not used"
        )
        if self.outline.frozen:
            share = self.outline.num_trained_parameters / self.outline.num_parameters
            reading += f", {self.outline.num_trained_parameters:,} ({share:.1%}) trained"
        return f"{self.outline.num_parameters:,} parameters, {reading}"

    def _data(self) -> str:
        if self.chunks is None:
            return "the number of chunks is not known before they are made"
        about = "about " if self.is_estimate else ""
        return f"{about}{self.chunks['train']:,} training chunks, {self.chunks['valid']:,} validation chunks"

    def _training(self, start_step: int) -> str:
        step_tokens = self.options.batch_size * self.sequence_tokens
        text = f"{self.options.max_steps:,} steps x {step_tokens:,} tokens = {self.total_tokens:,}"
        if self.chunks and self.chunks["train"]:
            passes = self.total_tokens / (self.chunks["train"] * self.chunk_length)
            text += f" ({'about ' if self.is_estimate else ''}{passes:,.1f} passes over the corpus)"
        return text + (f", from step {start_step:,}" if start_step else "")

    def _device(self) -> str:
        placement = self.placement
        device = placement.accelerator
        if device == "cuda" and torch.cuda.is_available():
            device = torch.cuda.get_device_name()
        if placement.strategy != "single":
            machines = "" if placement.nodes == 1 else f" on each of {placement.nodes} machines"
            device = f"{placement.devices} x {device}{machines}, {placement.strategy}"
        precision = "bf16" if self.placement.uses_bf16 else "fp32"
        return f"{device}, {precision}, CPU threads: {torch.get_num_threads()}"

    def _notes(self) -> list[str]:
        notes = []
        if self.chunks and self.chunks["train"] < self.sequence_chunks:
            notes.append(
                f"data.sequence_chunks is {self.sequence_chunks}, and the training split has {self.chunks['train']:,} "
                "chunks, too few for one sequence: fit will refuse"
            )
        warmup, steps = self.optimizer.warmup_steps, self.options.max_steps
        if warmup < steps:
            return notes
        highest = schedule_share(
            steps - 1, warmup_steps=warmup, max_steps=steps, final_share=self.optimizer.final_share
        )
        return [
            *notes,
            f"optimizer.warmup_steps is {warmup:,} and trainer.max_steps {steps:,}: the learning rate only rises, to "
            f"{highest:.0%} of its highest. Enough for a trial; else lower optimizer.warmup_steps",
        ]


def plan_of(job: Job) -> Plan:
    """The plan of a job, in which everything is known."""
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
    )
