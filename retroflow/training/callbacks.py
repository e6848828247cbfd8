"""What happens around a training step: metrics, the quick estimate, stopping, checkpoints.

They run in the order of `make_callbacks`, which resuming relies on: at a step, metrics are written before the
checkpoint, so that a run resumed from it has all lines of the steps before and none after.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from retroflow.distributed.ranks import Ranks
from retroflow.distributed.stop_signals import StopRequests
from retroflow.errors import RetroflowError
from retroflow.planning.options import TrainerOptions
from retroflow.planning.throughput import Throughput
from retroflow.runs.checkpoints import checkpoint_path, sweep
from retroflow.runs.folder import RunFolder
from retroflow.runs.metrics import MetricsLog
from retroflow.tracking.background import GuardedTracker
from retroflow.training.lost_weights import refuse_lost_weights
from retroflow.training.progress import TrainingProgress


def ends_step(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether the batch that just ended was the last piece of an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def _refuse_not_finite(value: float, what: str) -> None:
    if not math.isfinite(value):
        raise RetroflowError(
            f"the training {what} is {value}; start a new run with a lower optimizer.learning_rate or more "
            "optimizer.warmup_steps"
        )


class LogMetrics(pl.Callback):
    """Averages the loss over `log_every` steps and writes it to the files, the tracker and the progress line.

    The sums of an unfinished window are part of the checkpoint, those of every rank by itself: added together they
    would round differently after a resumption. The first step of a process is shown to the person who waits for it,
    too, and written nowhere.
    """

    def __init__(
        self,
        log: MetricsLog | None,
        tracker: GuardedTracker,
        progress: TrainingProgress,
        throughput: Throughput,
        options: TrainerOptions,
        ranks: Ranks,
    ) -> None:
        self._log, self._tracker, self._progress, self._options = log, tracker, progress, options
        self._throughput = throughput
        self._ranks = ranks
        self._nats: Tensor = torch.zeros((), dtype=torch.float64)
        self._window_tokens: Tensor = torch.zeros((), dtype=torch.int64)
        self._tokens = 0
        self._clock, self._clock_step, self._is_first = time.perf_counter(), 0, True

    @property
    def tokens(self) -> int:
        """Predicted tokens of all steps that were logged."""
        return self._tokens

    def state_dict(self) -> dict[str, Any]:
        windows = self._ranks.gather([float(self._nats), float(self._window_tokens)])
        for nats, _ in windows:  # else a checkpoint could keep weights that are lost
            _refuse_not_finite(nats, "loss")
        return {"windows": windows, "tokens": self._tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Checkpoints of a single process once held its sums without a list of ranks.
        windows = state_dict.get("windows") or [[state_dict["nats"], state_dict["window_tokens"]]]
        if len(windows) == self._ranks.world_size:
            nats, tokens = windows[self._ranks.rank]
        else:
            nats, tokens = [sum(column) if self._ranks.is_first else 0.0 for column in zip(*windows, strict=True)]
        self._nats = torch.tensor(nats, dtype=torch.float64)
        self._window_tokens = torch.tensor(int(tokens))
        self._tokens = state_dict["tokens"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._nats = self._nats.to(pl_module.device)
        self._window_tokens = self._window_tokens.to(pl_module.device)
        self._clock, self._clock_step = time.perf_counter(), trainer.global_step
        self._progress.start(trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._nats += outputs["nats"]
        self._window_tokens += outputs["tokens"]
        if not ends_step(trainer, batch_idx):
            return
        step = trainer.global_step
        if self._is_first:
            self._is_first = False
            self._progress.first_step_done(step, float(self._nats) / max(1, int(self._window_tokens)))
        if step % self._options.log_every == 0 or step == self._options.max_steps:
            self._write(trainer, pl_module, step)
        self._progress.advance(step)

    def _write(self, trainer: pl.Trainer, pl_module: Any, step: int) -> None:
        nats, counted = self._ranks.total([float(self._nats), float(self._window_tokens)])
        tokens = int(counted)
        self._tokens += tokens
        _refuse_not_finite(nats, f"loss at step {step}")
        _refuse_not_finite(float(pl_module.gradient_norm), f"gradient norm at step {step}")
        values = {
            "train/loss": nats / max(1, tokens),
            "train/learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "train/gradient_norm": float(pl_module.gradient_norm),
            "train/tokens": self._tokens,
        }
        now = time.perf_counter()
        speed = self._throughput.reading(self._clock_step, step, tokens=tokens, seconds=now - self._clock)
        self._clock, self._clock_step = now, step
        self._nats.zero_()
        self._window_tokens.zero_()
        if self._log is not None:
            self._log.append(step, values)
            self._log.append_throughput(step, speed)
            self._tracker.log(values | {f"train/{name}": value for name, value in speed.items()}, step)
        self._progress.measured(values["train/loss"], speed["tokens_per_second"])

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._progress.stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._progress.stop()


class EstimateValidation(pl.Callback):
    """Every `validate_every` steps: loss with and without retrieval on a few fixed batches.

    Not Lightning's validation loop: that one runs after the checkpoint of the same step and is skipped on resume.
    """

    def __init__(
        self,
        estimate: Callable[[], dict[str, float]],
        log: MetricsLog | None,
        tracker: GuardedTracker,
        progress: TrainingProgress,
        every: int,
    ) -> None:
        self._estimate, self._log, self._tracker, self._progress, self._every = estimate, log, tracker, progress, every

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if not self._every or step % self._every or not ends_step(trainer, batch_idx):
            return
        values = self._estimate()
        if self._log is not None:
            self._log.append(step, values)
            self._tracker.log(values, step)
        self._progress.note(step, values)


class StopAtStepEnd(pl.Callback):
    """Ends training at a step boundary when a signal came or `max_seconds` are over, on all ranks together."""

    def __init__(self, requests: StopRequests, max_seconds: float, ranks: Ranks) -> None:
        self._requests, self._max_seconds, self._ranks = requests, max_seconds, ranks
        self._seconds_at_end = 0.0
        self._seconds_before = 0.0
        self._clock = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training until now, those before the last resumption included."""
        return self._seconds_before + time.perf_counter() - self._clock

    @property
    def seconds_of_training(self) -> float:
        """Seconds until the last step ended."""
        return self._seconds_at_end

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds_at_end}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = self._seconds_at_end = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._requests.install()
        self._clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        self._seconds_at_end = self.seconds
        is_over = 0 < self._max_seconds <= self._seconds_at_end
        wishes = self._ranks.gather([self._requests.signal_number or 0, is_over])
        if signals := [int(number) for number, _ in wishes if number]:
            self._requests.adopt(signals[0])
        if any(wish for wishes_of_rank in wishes for wish in wishes_of_rank):
            trainer.should_stop = True


class WriteCheckpoints(pl.Callback):
    """Writes a checkpoint every `checkpoint_every` steps, at the end, and whenever training is being stopped.

    Args:
        run: where to.
        log: brought to the disk first; None on ranks other than 0.
        options: how often, how many to keep.
        identity: plain values that say what the checkpoint belongs to; stored in it.
    """

    def __init__(
        self, run: RunFolder, log: MetricsLog | None, options: TrainerOptions, identity: dict[str, Any]
    ) -> None:
        self._run, self._log, self._options, self._identity = run, log, options, identity

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["retroflow"] = self._identity

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, every = trainer.global_step, self._options.checkpoint_every
        if not ends_step(trainer, batch_idx):
            return
        if trainer.should_stop or step >= self._options.max_steps or (every and step % every == 0):
            _refuse_not_finite(float(pl_module.gradient_norm), f"gradient norm at step {step}")
            refuse_lost_weights(trainer, pl_module, batch)
            if self._log is not None:
                self._log.sync()
            trainer.save_checkpoint(checkpoint_path(self._run.checkpoints, step))
            if trainer.is_global_zero:
                sweep(self._run.checkpoints, keep=self._options.keep_checkpoints)
