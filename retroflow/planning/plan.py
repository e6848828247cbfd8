"""The summary of a run before it begins: of `fit` from what is prepared, of a dry run from what is known."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from retroflow.components import MODELS, create
from retroflow.errors import UsageError
from retroflow.model.config import RetroConfig
from retroflow.planning.machine_memory import MachineMemory, available_cores, machine_memory
from retroflow.planning.memory_estimate import DeviceWork, MemoryEstimate, estimate_memory, estimate_states, size_text
from retroflow.planning.model_check import check_model
from retroflow.planning.options import OptimizerOptions, TrainerOptions
from retroflow.planning.outline import ModelOutline, check_trainable, outline
from retroflow.planning.placement import Placement
from retroflow.planning.schedule import learning_rate_factor
from retroflow.recipe import Recipe

FEWEST_TOKENS = 258
"""Smallest trained vocabulary: 256 bytes, the end of text, one merge."""

_MOST_WORKERS_A_CORE = 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run before it begins.

    Attributes:
        options: the trainer section; `retrieval` is False too if the model cannot read neighbours.
        optimizer: the optimizer section.
        placement: device, precision and processes.
        outline: the model's parameters.
        config: of the model.
        chunk_length: m.
        sequence_chunks: chunks of a sequence.
        num_neighbours: of a chunk; 0 without retrieval.
        chunks: split -> number of chunks, None if not known yet.
        is_estimate: whether `chunks` is an estimate.
        num_workers: processes that load batches, for each device.
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
    num_workers: int = 0

    @property
    def sequence_tokens(self) -> int:
        """Tokens of a sequence."""
        return self.sequence_chunks * self.chunk_length

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run, padding included."""
        return self.options.max_steps * self.options.batch_size * self.sequence_tokens

    @property
    def memory(self) -> MemoryEstimate:
        """Memory of a device; for models without a formula the known part."""
        world_size = self.placement.world_size
        work = DeviceWork(
            sequences=max(1, self.options.batch_size // (world_size * self.options.accumulate)),
            length=self.sequence_tokens,
            num_neighbours=self.num_neighbours,
            bf16=self.placement.uses_bf16,
            shards=world_size if self.placement.strategy == "fsdp" else 1,
            buckets=self.placement.strategy == "ddp",
            checkpointing=self.options.activation_checkpointing,
        )
        sizes = self.outline.sizes
        frozen = self.outline.frozen | (frozenset() if self.options.retrieval else self.outline.retrieval)
        if not isinstance(self.config, RetroConfig):
            return estimate_states(sizes, work, frozen=frozen)
        return estimate_memory(self.config, sizes, work, frozen=frozen)

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint: every trained weight and two means of AdamW, float32."""
        return 12 * self.outline.num_trained_parameters

    def lines(self, *, start_step: int = 0) -> list[str]:
        """Describe the run, one fact per line."""
        return [
            f"model      {self._model()}",
            f"data       {self._data()}",
            f"training   {self._training(start_step)}",
            f"device     {self._device()}",
            f"memory     {self.memory}",
            *(f"note       {note}" for note in self.notes()),
        ]

    def _model(self) -> str:
        retrieval = "retrieval not used"
        if self.options.retrieval:
            number = self.outline.num_retrieval_parameters
            retrieval = f"{number:,} of them for retrieval" if number else "which read neighbours as they are"
        if self.outline.frozen:
            share = self.outline.num_trained_parameters / self.outline.num_parameters
            retrieval += f", {self.outline.num_trained_parameters:,} ({share:.1%}) trained"
        return f"{self.outline.num_parameters:,} parameters, {retrieval}"

    def _data(self) -> str:
        if self.chunks is None:
            return "the number of chunks is unknown until they are made"
        about = "about " if self.is_estimate else ""
        return f"{about}{self.chunks['train']:,} training chunks, {self.chunks['valid']:,} validation chunks"

    def _training(self, start_step: int) -> str:
        if not self.options.max_steps:
            return "none: trainer.max_steps is 0"
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

    def notes(self) -> list[str]:
        """Return what a user should know before it begins."""
        notes = [self._too_short(), self._warm_up(), memory_note(self.memory, machine_memory(self.placement))]
        if self.options.compile:
            notes.append("trainer.compile: compiling takes minutes before the first step and prints nothing")
        cores, workers = available_cores(), self.num_workers * self.placement.devices
        if workers > _MOST_WORKERS_A_CORE * cores:
            notes.append(
                f"data.num_workers: {workers:,} processes would load batches on {cores} cores, and starting them takes "
                "long; 1 to 4 for each device are enough"
            )
        return [note for note in notes if note]

    def _too_short(self) -> str:
        if not self.chunks or self.chunks["train"] >= self.sequence_chunks:
            return ""
        return (
            f"data.sequence_chunks is {self.sequence_chunks}, but the training split has {self.chunks['train']:,} "
            "chunks, too few for one sequence: fit will refuse"
        )

    def _warm_up(self) -> str:
        warmup, steps = self.optimizer.warmup_steps, self.options.max_steps
        if warmup < steps or not steps:
            return ""
        highest = learning_rate_factor(
            steps - 1, warmup_steps=warmup, max_steps=steps, final_share=self.optimizer.final_share
        )
        return (
            f"optimizer.warmup_steps is {warmup:,} and trainer.max_steps {steps:,}: the learning rate only rises, to "
            f"{highest:.0%} of its highest. Enough for a trial; else lower optimizer.warmup_steps"
        )


def memory_note(needed: MemoryEstimate, there: MachineMemory | None) -> str:
    """Return a note if a run may not fit; empty if it fits or that is unknown."""
    if there is None:
        return ""
    needs = f"needs {'about' if needed.is_complete else 'at least'} {size_text(needed.total)} per device"
    if needed.total > there.total:
        return f"does not fit: it {needs}, and this machine has {size_text(there.total)} {there.what}"
    if there.free is not None and needed.total > there.free:
        total, free = size_text(there.total), size_text(there.free)
        return f"may not fit: it {needs}, and of {total} {there.what} {free} are free now"
    return ""


def check_memory(plan: Plan) -> None:
    """Refuse a run that cannot fit this machine.

    Raises:
        UsageError: it needs more than the machine has, even if nothing else used it.
    """
    needed, there = plan.memory, machine_memory(plan.placement)
    if there is None or needed.total <= there.total:
        return
    if needed.of_model > there.total:
        remedy = (
            "Make the model smaller (model.width, model.num_layers, data.vocabulary_size), or divide it over more "
            "devices (trainer.strategy=fsdp, trainer.devices)"
        )
    else:
        remedy = (
            "Lower trainer.batch_size or data.sequence_chunks, raise trainer.accumulate, set "
            "trainer.activation_checkpointing=true, or make the model smaller"
        )
    raise UsageError(
        f"this recipe does not fit: it needs {needed}; this machine has {size_text(there.total)} {there.what}. "
        f"{remedy}. The need is an estimate; ignore_memory=True trains anyway."
    )


def plan_of_recipe(
    recipe: Recipe,
    placement: Placement,
    *,
    vocabulary_size: int = FEWEST_TOKENS,
    chunks: dict[str, int] | None = None,
    is_estimate: bool = False,
) -> Plan:
    """Return the plan of a recipe from what is known before anything is prepared.

    Args:
        recipe: the checked recipe.
        placement: device, precision and processes.
        vocabulary_size: of its tokenizer; by default the smallest possible, so that no estimate is too high.
        chunks: as in `Plan`.
        is_estimate: as in `Plan`.

    Raises:
        RetroflowError: the model's own files do not exist or do not fit.
    """
    options, data = TrainerOptions(**recipe.section("trainer")), recipe.section("data")
    length: int = data["chunk_length"]
    check_model(recipe, options, placement)
    config = create(MODELS, recipe.section("model"), vocabulary_size=vocabulary_size, chunk_length=length)
    model = outline(config)
    check_trainable(model, options, strategy=placement.strategy)
    retrieves = options.retrieval and config.retrieves
    return Plan(
        options=replace(options, retrieval=retrieves),
        optimizer=OptimizerOptions(**recipe.section("optimizer")),
        placement=placement,
        outline=model,
        config=config,
        chunk_length=length,
        sequence_chunks=data["sequence_chunks"],
        num_neighbours=recipe.section("neighbours")["k"] if retrieves else 0,
        chunks=chunks,
        is_estimate=is_estimate,
        num_workers=data["num_workers"],
    )
