"""The end of an optimizer step: metrics, quick validation, stopping, checkpoints.

The order is that of the lines in `StepEnd.on_train_batch_end`, and resuming relies on it: metrics are written before
the checkpoint, so that a run resumed from it has all lines up to the checkpoint and none after.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from retroflow.distributed.ranks import Ranks
from retroflow.distributed.stop_signals import StopRequests
from retroflow.errors import RetroflowError
from retroflow.planning.options import TrainerOptions
from retroflow.planning.throughput import Throughput
from retroflow.runs.checkpoint_files import checkpoint_path
from retroflow.runs.checkpoints import sweep
from retroflow.runs.metrics import MetricsLog
from retroflow.tracking.background import GuardedTracker
from retroflow.training.lost_weights import refuse_lost_weights
from retroflow.training.progress import TrainingProgress


def _refuse_not_finite(value: float, what: str) -> None:
    if not math.isfinite(value):
        raise RetroflowError(
            f"The training {what} is {value}. Start a new run with a lower optimizer.learning_rate or more "
            "optimizer.warmup_steps."
        )


class StepEnd(pl.Callback):
    """Everything at the end of a step, in the order of the lines of `on_train_batch_end`.

    It is one callback, because the order of several would be decided elsewhere. Lightning's validation loop is not
    used: it runs after the checkpoint of the same step and is skipped on resume.

    Args:
        metrics: writes the lines.
        estimate: measures a quick validation estimate.
        stopping: decides whether to stop.
        options: intervals in steps.
        checkpoints: the folder for checkpoints.
        identity: plain values that identify the run; stored in each of them.
    """

    def __init__(
        self,
        metrics: "Metrics",
        estimate: Callable[[], dict[str, float]],
        stopping: "Stopping",
        options: TrainerOptions,
        checkpoints: Path,
        identity: dict[str, Any],
    ) -> None:
        self._metrics, self._estimate, self._stopping, self._options = metrics, estimate, stopping, options
        self._checkpoints, self._identity = checkpoints, identity

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._metrics.add(outputs)
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # a micro-batch before the last of a step
        step, options = trainer.global_step, self._options
        is_last = step >= options.max_steps
        self._metrics.step_done(step)
        if step % options.log_every == 0 or is_last:
            self._metrics.write(step, trainer.optimizers[0].param_groups[0]["lr"], float(pl_module.gradient_norm))
        if options.validate_every and step % options.validate_every == 0:
            self._metrics.note(step, self._estimate())
        if self._stopping.is_wanted():
            trainer.should_stop = True
        if trainer.should_stop or is_last or (options.checkpoint_every and step % options.checkpoint_every == 0):
            _refuse_not_finite(float(pl_module.gradient_norm), f"gradient norm at step {step}")
            refuse_lost_weights(trainer, pl_module, batch)
            self._metrics.sync()
            self.write_checkpoint(trainer)

    def write_checkpoint(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint of the last step, and keep the newest; called on all ranks."""
        trainer.save_checkpoint(checkpoint_path(self._checkpoints, trainer.global_step))
        if trainer.is_global_zero:
            sweep(self._checkpoints, keep=self._options.keep_checkpoints)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stopping.start()
        self._metrics.start(trainer.global_step, pl_module.device)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        checkpoint["retroflow"] = self._identity

    def state_dict(self) -> dict[str, Any]:
        stopping = self._stopping
        return self._metrics.state_dict() | {"seconds": stopping.seconds, "cpu_seconds": stopping.cpu_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._metrics.load_state_dict(state_dict)
        self._stopping.seconds = state_dict["seconds"]
        self._stopping.cpu_seconds = state_dict.get("cpu_seconds", state_dict["seconds"])


class Metrics:
    """Averages the loss over `log_every` steps and writes it to the files, the tracker and the progress line.

    The sums of an unfinished window are part of the checkpoint, separately for every rank: their total would round
    differently after a resumption. The first step of a process is only shown, not written.
    """

    def __init__(
        self,
        log: MetricsLog | None,
        tracker: GuardedTracker,
        progress: TrainingProgress,
        throughput: Throughput,
        ranks: Ranks,
    ) -> None:
        self._log, self._tracker, self._progress = log, tracker, progress
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
        for nats, _ in windows:  # or a checkpoint could keep useless weights
            _refuse_not_finite(nats, "loss")
        return {"windows": windows, "tokens": self._tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        windows = state_dict["windows"]
        if len(windows) == self._ranks.world_size:
            nats, tokens = windows[self._ranks.rank]
        else:
            nats, tokens = [sum(column) if self._ranks.is_first else 0.0 for column in zip(*windows, strict=True)]
        self._nats = torch.tensor(nats, dtype=torch.float64)
        self._window_tokens = torch.tensor(int(tokens))
        self._tokens = state_dict["tokens"]

    def start(self, step: int, device: torch.device) -> None:
        """Begin at `step` finished steps, with sums on the device of the losses."""
        self._nats = self._nats.to(device)
        self._window_tokens = self._window_tokens.to(device)
        self._clock, self._clock_step = time.perf_counter(), step
        self._progress.start(step)

    def add(self, outputs: dict[str, Tensor]) -> None:
        """Count a batch: `nats` and `tokens` of `training_step`."""
        self._nats += outputs["nats"]
        self._window_tokens += outputs["tokens"]

    def step_done(self, step: int) -> None:
        """Show that `step` steps are done."""
        if self._is_first:
            self._is_first = False
            self._progress.first_step_done(step, float(self._nats) / max(1, int(self._window_tokens)))
        self._progress.advance(step)

    def write(self, step: int, learning_rate: float, gradient_norm: float) -> None:
        """Write the line of `step`, and begin a new window; called on all ranks.

        Raises:
            RetroflowError: the loss or the gradient is not finite, or a file cannot be written.
        """
        nats, counted = self._ranks.total([float(self._nats), float(self._window_tokens)])
        tokens = int(counted)
        self._tokens += tokens
        _refuse_not_finite(nats, f"loss at step {step}")
        _refuse_not_finite(gradient_norm, f"gradient norm at step {step}")
        values = {
            "train/loss": nats / max(1, tokens),
            "train/learning_rate": learning_rate,
            "train/gradient_norm": gradient_norm,
            "train/tokens": self._tokens,
        }
        now = time.perf_counter()
        speed = self._throughput.metrics(self._clock_step, step, tokens=tokens, seconds=now - self._clock)
        self._clock, self._clock_step = now, step
        self._nats.zero_()
        self._window_tokens.zero_()
        if self._log is not None:
            self._log.append(step, values)
            self._log.append_throughput(step, speed)
            self._tracker.log(values | {f"train/{name}": value for name, value in speed.items()}, step)
        self._progress.measured(values["train/loss"], speed["tokens_per_second"])

    def note(self, step: int, values: dict[str, float]) -> None:
        """Write the quick validation estimate of `step`."""
        if self._log is not None:
            self._log.append(step, values)
            self._tracker.log(values, step)
        self._progress.note(step, values)

    def sync(self) -> None:
        """Fsync all lines, before a checkpoint that relies on them."""
        if self._log is not None:
            self._log.sync()


class Stopping:
    """Ends training at a step boundary after a signal or `max_seconds`, on all ranks together.

    Attributes:
        seconds: of training until the end of the last step, including those before the last resumption.
        cpu_seconds: that this process spent on it, summed over its threads.
    """

    def __init__(self, requests: StopRequests, max_seconds: float, ranks: Ranks) -> None:
        self._requests, self._max_seconds, self._ranks = requests, max_seconds, ranks
        self.seconds = self.cpu_seconds = 0.0
        self._clock, self._cpu_clock = time.perf_counter(), time.process_time()

    def start(self) -> None:
        """Replace Lightning's signal handlers, and start the clock."""
        self._requests.install()
        self._clock = time.perf_counter() - self.seconds
        self._cpu_clock = time.process_time() - self.cpu_seconds

    def is_wanted(self) -> bool:
        """Return whether any rank got a signal or is over its time; called on all ranks."""
        self.seconds = time.perf_counter() - self._clock
        self.cpu_seconds = time.process_time() - self._cpu_clock
        is_over = 0 < self._max_seconds <= self.seconds
        wishes = self._ranks.gather([self._requests.signal_number or 0, is_over])
        if signals := [int(number) for number, _ in wishes if number]:
            self._requests.adopt(signals[0])
        return any(wish for wishes_of_rank in wishes for wish in wishes_of_rank)
