"""The `optimizer` and `trainer` sections of a recipe. No torch here: `retroflow recipe check` reads this file only."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from retroflow.errors import UsageError
from retroflow.options import checked_options

MOST_THREADS = 1024
"""More than any machine has cores; of 100,000 torch fails to start most, long after they were asked for."""


@checked_options("optimizer")
@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """AdamW with a linear warm-up and a cosine, after RETRO's appendix C.

    Attributes:
        learning_rate: highest rate, reached after the warm-up.
        weight_decay: on matrices outside embeddings; gains, biases and embeddings are not decayed.
        warmup_steps: optimizer steps of linear rise from nearly zero.
        final_share: share of `learning_rate` that the cosine ends at, at `trainer.max_steps`.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of squared gradients.
        epsilon: added to the root in AdamW's denominator.
        clip_norm: largest global gradient norm; 0 leaves gradients as they are.
    """

    learning_rate: Annotated[float, Ge(0)] = 3.0e-3
    weight_decay: Annotated[float, Ge(0)] = 0.1
    warmup_steps: Annotated[int, Ge(0)] = 50
    final_share: Annotated[float, Ge(0), Le(1)] = 0.1
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.95
    epsilon: Annotated[float, Gt(0)] = 1.0e-8
    clip_norm: Annotated[float, Ge(0)] = 1.0


@checked_options("trainer")
@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """How long, on what and with which habits a model is trained.

    Attributes:
        max_steps: optimizer steps of the run; the learning-rate schedule ends here.
        max_seconds: stop training at the first step after this many seconds; 0 for no limit.
        batch_size: sequences of an optimizer step over all devices; the recipe's mathematics, not the machine's.
        accumulate: pieces a device's share of a step is cut into, to save memory.
        retrieval: False trains the same decoder without retrieved text, as a baseline.
        retrieval_dropout: share of steps trained without retrieved text, so that retrieval can be switched off.
        precision: "fp32", "bf16" (autocast), or "auto": bf16 where it pays.
        device: "cpu", "cuda", or "auto": a GPU when there is one.
        strategy: "ddp": every process has the whole model; "fsdp": each has a share of it; "auto": one process, or
            DDP where several are wanted.
        devices: processes on each machine, a GPU each; 0 takes what the launcher started, else with ddp and fsdp
            every GPU.
        nodes: machines; 0 takes what the launcher started, else 1.
        timeout_seconds: how long a rank waits for another, such as rank 0 writing a checkpoint, before it gives up.
        activation_checkpointing: compute each block again in the backward pass instead of keeping its activations.
        compile: compile with torch.compile, the loss as a whole or under ddp and fsdp each block; pays after some
            300 steps.
        num_threads: CPU threads of torch; 0 leaves torch's choice.
        peak_flops: dense FLOP/s of one device in the precision used, for MFU; 0 looks the GPU's name up.
        log_every: steps between two lines of metrics.
        validate_every: steps between two quick validation estimates; 0 for none.
        validation_batches: batches of a quick estimate.
        eval_batch_size: sequences of a batch during evaluation.
        final_sequences: validation sequences that the evaluation at the end measures, evenly spaced, always the same;
            for trials, and the report says that it is a sample. null for all of them.
        checkpoint_every: steps between two checkpoints; 0 for one at the end only.
        keep_checkpoints: newest checkpoints that stay.
        runs_folder: where run folders are made; `~` is the home folder.
    """

    max_steps: Annotated[int, Ge(1)] = 1000
    max_seconds: Annotated[float, Ge(0)] = 0.0
    batch_size: Annotated[int, Ge(1)] = 4
    accumulate: Annotated[int, Ge(1)] = 1
    retrieval: bool = True
    retrieval_dropout: Annotated[float, Ge(0), Le(1)] = 0.1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    devices: Annotated[int, Ge(0)] = 0
    nodes: Annotated[int, Ge(0)] = 0
    timeout_seconds: Annotated[float, Ge(1)] = 600.0
    activation_checkpointing: bool = False
    compile: bool = False
    num_threads: Annotated[int, Ge(0), Le(MOST_THREADS)] = 0
    peak_flops: Annotated[float, Ge(0)] = 0.0
    log_every: Annotated[int, Ge(1)] = 10
    validate_every: Annotated[int, Ge(0)] = 0
    validation_batches: Annotated[int, Ge(1)] = 8
    eval_batch_size: Annotated[int, Ge(1)] = 8
    final_sequences: Annotated[int, Ge(1)] | None = None
    checkpoint_every: Annotated[int, Ge(0)] = 200
    keep_checkpoints: Annotated[int, Ge(1)] = 2
    runs_folder: Annotated[str, MinLen(1)] = "runs"

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"trainer.accumulate is {self.accumulate}, which does not divide trainer.batch_size {self.batch_size}; "
                "a step is cut into equal pieces."
            )
