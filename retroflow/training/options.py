"""The `optimizer` and `trainer` sections of a recipe. No torch here: `retroflow recipe check` reads this file only."""

from dataclasses import dataclass
from typing import Literal

from retroflow.errors import RecipeError


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

    learning_rate: float = 3.0e-3
    weight_decay: float = 0.1
    warmup_steps: int = 50
    final_share: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1.0e-8
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _within("optimizer.learning_rate", self.learning_rate, 0.0)
        _within("optimizer.weight_decay", self.weight_decay, 0.0)
        _within("optimizer.warmup_steps", self.warmup_steps, 0)
        _within("optimizer.final_share", self.final_share, 0.0, 1.0)
        for name in ("beta1", "beta2"):
            _within(f"optimizer.{name}", getattr(self, name), 0.0, 1.0)
            if getattr(self, name) == 1.0:
                raise RecipeError(f"optimizer.{name}: 1.0 given; it must be below 1, or the mean never moves")
        _within("optimizer.epsilon", self.epsilon, 0.0)
        _within("optimizer.clip_norm", self.clip_norm, 0.0)


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """How long, on what and with which habits a model is trained.

    Attributes:
        max_steps: optimizer steps of the run; the learning-rate schedule ends here.
        max_seconds: stop training at the first step after this many seconds; 0 for no limit.
        batch_size: sequences of an optimizer step over all devices; the recipe's mathematics, not the machine's.
        accumulate: pieces a device's share of a step is cut into, to save memory.
        retrieval: False trains the same decoder without retrieved text, as an opponent.
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

    max_steps: int = 1000
    max_seconds: float = 0.0
    batch_size: int = 4
    accumulate: int = 1
    retrieval: bool = True
    retrieval_dropout: float = 0.1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    devices: int = 0
    nodes: int = 0
    timeout_seconds: float = 600.0
    activation_checkpointing: bool = False
    compile: bool = False
    num_threads: int = 0
    peak_flops: float = 0.0
    log_every: int = 10
    validate_every: int = 0
    validation_batches: int = 8
    eval_batch_size: int = 8
    final_sequences: int | None = None
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    runs_folder: str = "runs"

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "accumulate", "log_every", "validation_batches", "eval_batch_size"):
            _within(f"trainer.{name}", getattr(self, name), 1)
        for name in (
            "max_seconds",
            "num_threads",
            "devices",
            "nodes",
            "peak_flops",
            "validate_every",
            "checkpoint_every",
        ):
            _within(f"trainer.{name}", getattr(self, name), 0)
        if self.final_sequences is not None:
            _within("trainer.final_sequences", self.final_sequences, 1)
        _within("trainer.keep_checkpoints", self.keep_checkpoints, 1)
        _within("trainer.timeout_seconds", self.timeout_seconds, 1)
        _within("trainer.retrieval_dropout", self.retrieval_dropout, 0.0, 1.0)
        if self.batch_size % self.accumulate:
            raise RecipeError(
                f"trainer.accumulate: {self.accumulate} does not divide trainer.batch_size {self.batch_size}; a step "
                "is cut into equal pieces"
            )
        if not self.runs_folder:
            raise RecipeError("trainer.runs_folder is empty; give a folder, or leave the line out")


def _within(key: str, value: float, least: float, most: float = float("inf")) -> None:
    if not least <= value <= most:
        allowed = f"at least {least}" if most == float("inf") else f"from {least} to {most}"
        raise RecipeError(f"{key}: {value} given; it must be {allowed}")
