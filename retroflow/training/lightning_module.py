"""The training step as a LightningModule, which contains a model and is not one.

Shapes: b sequences, n tokens of a sequence.
"""

import hashlib
from functools import partial
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from retroflow.data import Batch
from retroflow.data.batch import NOT_PREDICTED
from retroflow.distributed.sharding import build_sharded
from retroflow.errors import UsageError
from retroflow.evaluation.prompted import Prompting, prompt_of
from retroflow.model.config import RetroConfig
from retroflow.planning.options import OptimizerOptions, TrainerOptions
from retroflow.planning.outline import check_trainable, outline
from retroflow.planning.schedule import learning_rate_factor
from retroflow.protocols import ModelConfig
from retroflow.training.optimizers import make_optimizer, make_schedule

_RETRIEVAL_STREAM = 1
"""Separates the random stream of retrieval dropout from the others of the recipe's seed."""

_TEACHER_STREAM = 5
"""The same of the chunks that a teacher predicts."""


def drops_retrieval(seed: int, step: int, share: float) -> bool:
    """Return whether a step trains without retrieved text; depends on seed and step only, the same on all ranks."""
    return bool(np.random.default_rng([seed, step, _RETRIEVAL_STREAM]).random() < share)


def dropout_seed(seed: int, batch: int, rank: int) -> int:
    """Return the seed of one batch's dropout on one rank; a pure function, so that resuming needs no state."""
    key = f"{seed}/{batch}/{rank}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "little")


class RetroModule(pl.LightningModule):
    """Trains a Retro.

    Args:
        model: configuration; `build()` makes the network.
        optimizer: AdamW and its schedule.
        trainer: number of steps, retrieval dropout, activation checkpointing, compile.
        seed: of the initial weights and of retrieval dropout.
    """

    def __init__(self, *, model: ModelConfig, optimizer: OptimizerOptions, trainer: TrainerOptions, seed: int) -> None:
        super().__init__()
        self.model: Any = None
        self.gradient_norm: Tensor = torch.zeros(())
        self.outline = outline(model)
        check_trainable(self.outline, trainer)
        if trainer.activation_checkpointing and not self.outline.can_recompute:
            raise UsageError(
                "trainer.activation_checkpointing is true, and the model names no blocks_to_recompute; leave it out."
            )
        self._config, self._optimizer_options, self._options, self._seed = model, optimizer, trainer, seed
        self._loss: Any = None

    @property
    def config(self) -> ModelConfig:
        """Configuration of the model."""
        return self._config

    @property
    def optimizer_options(self) -> OptimizerOptions:
        """AdamW and its schedule."""
        return self._optimizer_options

    @property
    def retrieves(self) -> bool:
        """Whether the recipe trains with retrieval and the model can use it."""
        return self._options.retrieval and self._config.retrieves

    def configure_model(self) -> None:
        """Build the network from the seed; Lightning may call this more than once."""
        if self.model is not None:
            return
        torch.manual_seed(self._seed)
        if self._is_sharded:
            assert self.device_mesh is not None
            # Layers of another library may not accept weights in bfloat16: torch's LayerNorm does not.
            bf16 = self.trainer.precision == "bf16-mixed" and isinstance(self._config, RetroConfig)
            mesh = self.device_mesh["data_parallel"]
            self.model = build_sharded(self._build, mesh, prepare=self._prepare_blocks, bf16=bf16)
        else:
            with torch.device("cpu"):  # the same weights on every kind of device, unlike Lightning
                self.model = self._build()
            self._prepare_blocks(self.model)
        if not self.retrieves:
            for name, parameter in self.model.named_parameters():
                if name in self.outline.retrieval:
                    parameter.requires_grad_(False)
        self._loss = self.model.loss
        if self._options.compile and not dist.is_initialized():
            self._loss = torch.compile(self.model.loss, dynamic=False)

    def release(self) -> None:
        """Drop the network, so that `configure_model` builds an unsharded one."""
        self.model, self._loss, self._device_mesh = None, None, None

    @property
    def _is_sharded(self) -> bool:
        return self.device_mesh is not None

    def _build(self) -> nn.Module:
        return cast(nn.Module, self._config.build())

    def _prepare_blocks(self, model: Any) -> None:
        """Switch on activation checkpointing, and under DDP and FSDP compilation, for each layer.

        torch's wrapper for checkpointing is not used, because it renames parameters.
        """
        if self._options.activation_checkpointing:
            for block in model.blocks_to_recompute:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if self._options.compile and dist.is_initialized():
            for block in model.blocks_to_compile:
                block.compile(dynamic=False)

    def on_load_checkpoint(self, saved: dict[str, Any]) -> None:
        """Count the batches of the finished steps anew.

        `trainer.accumulate` may differ from the checkpoint's. Lightning ends a step at every multiple of it, counted
        from the first batch of the run.
        """
        progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        batches = saved["global_step"] * self._options.accumulate
        # Checkpoints are written before Lightning counts their last batch as completed.
        counts = {"ready": batches, "started": batches, "processed": batches, "completed": max(0, batches - 1)}
        for span in ("total", "current"):
            progress[span].update(counts)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.model, self._optimizer_options)
        schedule = make_schedule(optimizer, self._optimizer_options, max_steps=self._options.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Set the learning rate of the next step from this recipe, as a checkpoint may have another schedule."""
        options = self._optimizer_options
        share = learning_rate_factor(
            self.trainer.global_step,
            warmup_steps=options.warmup_steps,
            max_steps=self._options.max_steps,
            final_share=options.final_share,
        )
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout."""
        torch.manual_seed(dropout_seed(self._seed, batch_idx, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss that is minimised, and the sums that are logged.

        The loss is divided by the number of positions, not of targets: with a constant, every token of the run has the
        same weight, however the batch is divided over ranks and micro-batches (docs/decisions).
        """
        off = not self.retrieves or self._drops_this_step()
        if off:
            batch = batch.without_retrieval()
        targets, taught = batch.targets, torch.zeros((), device=batch.targets.device)
        if self._options.has_teacher and not off:
            nats, taught, targets = self._taught_loss(batch, batch_idx)
        else:
            nats = self._loss(batch.tokens, targets, batch.retrieved, batch.retrieved_mask, batch.padding).sum()
        loss = nats / targets.numel() + taught
        if off and self.retrieves and not self._is_sharded:
            loss = loss + self._zero_of_unused()
        if off and not loss.requires_grad:  # sharded with a frozen base: nothing to learn
            loss = loss + torch.zeros_like(loss, requires_grad=True)
        tokens = (targets != NOT_PREDICTED).sum()
        if self._trainer is not None and self._trainer.loggers:  # of a user's own Trainer
            self.log("train/loss", nats.detach() / tokens.clamp(min=1), batch_size=int(tokens))
        return {"loss": loss, "nats": nats.detach(), "tokens": tokens}

    def _taught_loss(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the summed loss, what the base teaches beside it, and the targets of the former, int64 [b, n]."""
        from retroflow.pretrained.teacher import Lesson, taught_loss

        m, options = self._config.chunk_length, self._options
        prompts: list[Tensor] = []
        chunks: list[int] = []
        if options.distil:
            drawn = np.random.default_rng([self._seed, batch_idx, self.global_rank, _TEACHER_STREAM])
            chunks = drawn.integers(1, batch.tokens.shape[1] // m, size=len(batch.tokens)).tolist()
            room = self.model.context_length
            prompts = [prompt_of(batch, row, chunk, m, Prompting(), room) for row, chunk in enumerate(chunks)]
        is_random = batch.is_random if options.random_target == "base" else None
        return taught_loss(self.model, batch.targets, batch, Lesson(is_random, chunks, prompts, options.distil))

    def _drops_this_step(self) -> bool:
        return drops_retrieval(self._seed, self.trainer.global_step, self._options.retrieval_dropout)

    def _zero_of_unused(self) -> Tensor:
        """Return 0 that depends on every parameter used only by retrieval, because DDP waits for a gradient of each.

        FSDP needs no such term: all ranks drop retrieval in the same steps, so they reduce the same gradients.
        """
        unused = [value.sum() for name, value in self.model.named_parameters() if name in self.outline.retrieval]
        return 0.0 * torch.stack(unused).sum()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the global norm and keep the norm before clipping, which Lightning's own clipping discards.

        In a step without retrieval its parameters have zero gradients, so that all ranks reduce the same ones. They are
        removed here: AdamW would move the parameters along earlier gradients. Seven such steps among the first 26 kept
        a model from ever using its neighbours (docs/log.md).
        """
        if self.retrieves and self._drops_this_step():
            for name, parameter in self.model.named_parameters():
                if name in self.outline.retrieval:
                    parameter.grad = None
        limit = self._optimizer_options.clip_norm or float("inf")
        trained = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.clip_grad_norm_(trained, limit)
        self.gradient_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
