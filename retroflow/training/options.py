"""The `optimizer` and `trainer` sections of a recipe. No torch here: `retroflow recipe check` reads this file only."""

from dataclasses import dataclass
from typing import Literal


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
        compile: compile the loss with torch.compile; pays after some 300 steps.
        num_threads: CPU threads of torch; 0 leaves torch's choice.
        num_workers: processes that assemble batches; 0 assembles them in the training process.
        log_every: steps between two lines of metrics.
        validate_every: steps between two quick validation estimates; 0 for none.
        validation_batches: batches of a quick estimate.
        eval_batch_size: sequences of a batch during evaluation.
        checkpoint_every: steps between two checkpoints; 0 for one at the end only.
        keep_checkpoints: newest checkpoints that stay.
        runs_folder: where run folders are made.
    """

    max_steps: int = 1000
    max_seconds: float = 0.0
    batch_size: int = 4
    accumulate: int = 1
    retrieval: bool = True
    retrieval_dropout: float = 0.1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False
    num_threads: int = 0
    num_workers: int = 0
    log_every: int = 10
    validate_every: int = 0
    validation_batches: int = 8
    eval_batch_size: int = 8
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    runs_folder: str = "runs"
