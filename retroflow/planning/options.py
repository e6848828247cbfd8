"""The `optimizer` and `trainer` sections of a recipe. No torch here: `retroflow recipe check` reads this file only."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from retroflow.errors import UsageError
from retroflow.options import checked_options

MOST_THREADS = 1024
"""More than any machine has cores; torch fails to start 100,000, long after they are requested."""


@checked_options("optimizer")
@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """AdamW with a linear warm-up and a cosine, after RETRO's appendix C.

    Attributes:
        learning_rate: highest rate, reached after the warm-up.
        weight_decay: on matrices outside embeddings; gains, biases and embeddings are not decayed.
        warmup_steps: optimizer steps of linear increase from nearly zero.
        final_share: share of `learning_rate` at the end of the cosine, at `trainer.max_steps`.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of squared gradients.
        epsilon: added to the root in AdamW's denominator.
        clip_norm: largest global gradient norm; 0 does not clip.
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
    """Options of training.

    Attributes:
        max_steps: optimizer steps of the run; the learning-rate schedule ends here. 0 trains nothing: the model is
            evaluated as it is built, and can be generated with, exported and resumed like any other.
        max_seconds: stop training at the first step after this many seconds; 0 for no limit.
        batch_size: sequences of an optimizer step over all devices.
        accumulate: micro-batches of a device per step, to save memory.
        retrieval: False trains the same decoder without retrieved text, as a baseline.
        retrieval_dropout: share of steps trained without retrieved text, so that retrieval can be switched off.
        random_neighbours: share of chunks trained with random chunks of the database as neighbours, so that the model
            learns to leave unread what does not help.
        random_target: what is learned where neighbours are random: "text": the next tokens, as everywhere; "base": the
            distribution of a frozen base without neighbours, so that they change nothing there.
        distil: weight of the divergence from a frozen base with the same neighbours in its prompt, on one chunk of
            each sequence; 0 for none.
        precision: "fp32", "bf16" (autocast), or "auto": bf16 if the device is faster with it.
        device: "cpu", "cuda", or "auto": a GPU if there is one.
        strategy: "ddp": every process has the whole model; "fsdp": each has a shard of it; "auto": one process, or
            DDP if there are several.
        devices: processes on each machine, one GPU each; 0 uses what the launcher started, else with ddp and fsdp
            every GPU.
        nodes: machines; 0 uses what the launcher started, else 1.
        timeout_seconds: how long a rank waits for another, such as rank 0 writing a checkpoint, before it gives up.
        activation_checkpointing: recompute each layer in the backward pass instead of keeping its activations.
        compile: use torch.compile, on the whole loss or under ddp and fsdp on each layer; pays off after about
            300 steps.
        num_threads: CPU threads of torch; 0 keeps torch's default.
        peak_flops: dense FLOP/s of one device in the precision used, for MFU; 0 looks up the GPU's name.
        log_every: steps between two lines of metrics.
        validate_every: steps between two quick validation estimates; 0 for none.
        validation_batches: batches of a quick estimate.
        eval_batch_size: sequences of a batch during evaluation.
        final_sequences: validation sequences of the final evaluation, evenly spaced, always the same; for trials. The
            report says that it is a sample. null for all of them.
        in_context_sequences: how many of these are also measured with the neighbours in the base's prompt, for a model
            with a pretrained base; one of 512 tokens takes as long as ten without retrieval. 0 for none.
        trained_opponents: also train the base alone, and the base with neighbours in its prompt, with as many low-rank
            weights for as many seconds as the run, and measure them on the sequences of in_context_sequences; for a
            frozen base. The run takes three times as long.
        checkpoint_every: steps between two checkpoints; 0 for one at the end only.
        keep_checkpoints: number of newest checkpoints to keep.
        runs_folder: folder for run folders; `~` is the home folder.
    """

    max_steps: Annotated[int, Ge(0)] = 1000
    max_seconds: Annotated[float, Ge(0)] = 0.0
    batch_size: Annotated[int, Ge(1)] = 4
    accumulate: Annotated[int, Ge(1)] = 1
    retrieval: bool = True
    retrieval_dropout: Annotated[float, Ge(0), Le(1)] = 0.1
    random_neighbours: Annotated[float, Ge(0), Le(1)] = 0.0
    random_target: Literal["text", "base"] = "text"
    distil: Annotated[float, Ge(0)] = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    devices: Annotated[int, Ge(0)] = 0
    nodes: Annotated[int, Ge(0)] = 0
    timeout_seconds: Annotated[float, Ge(1), Le(31_536_000)] = 600.0
    activation_checkpointing: bool = False
    compile: bool = False
    num_threads: Annotated[int, Ge(0), Le(MOST_THREADS)] = 0
    peak_flops: Annotated[float, Ge(0)] = 0.0
    log_every: Annotated[int, Ge(1)] = 10
    validate_every: Annotated[int, Ge(0)] = 0
    validation_batches: Annotated[int, Ge(1)] = 8
    eval_batch_size: Annotated[int, Ge(1)] = 8
    final_sequences: Annotated[int, Ge(1)] | None = None
    in_context_sequences: Annotated[int, Ge(0)] = 6
    trained_opponents: bool = False
    checkpoint_every: Annotated[int, Ge(0)] = 200
    keep_checkpoints: Annotated[int, Ge(1)] = 2
    runs_folder: Annotated[str, MinLen(1)] = "runs"

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"trainer.accumulate is {self.accumulate}, which does not divide trainer.batch_size {self.batch_size}; "
                "all micro-batches must have the same size."
            )
        if self.random_target == "base" and not self.random_neighbours:
            raise UsageError(
                'trainer.random_target is "base", and trainer.random_neighbours is 0: no neighbours are random. Set '
                "trainer.random_neighbours, or leave trainer.random_target out."
            )

    @property
    def has_teacher(self) -> bool:
        """Whether a frozen base teaches what reads for it."""
        return self.distil > 0 or self.random_target == "base"
