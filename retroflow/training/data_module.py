"""Training batches for Lightning."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from retroflow.data import Batch, SequenceDataset, StepBatches
from retroflow.distributed.parent_death import kill_with_parent
from retroflow.distributed.ranks import Ranks
from retroflow.distributed.stop_signals import SIGNALS
from retroflow.errors import RetroflowError
from retroflow.planning.options import TrainerOptions


def _as_it_is(batch: Any) -> Any:
    """Collate nothing, because the dataset assembles whole batches (torch types the argument as a list of samples)."""
    return batch


def _start_worker(parent: int, worker: int) -> None:
    """Ignore stop signals, because training needs its workers until the step ends, and end with the parent."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    kill_with_parent(parent)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then its causes and contexts: torch's zip writer raises a second error, which hides the first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_worker(error: RetroflowError) -> RetroflowError | None:
    """A data worker's error without the traceback that torch writes into its message; None for other errors."""
    kind = type(error)
    before, _, message = str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")
    return kind(message.strip()) if before.startswith("Caught ") else None


@contextmanager
def explain_lost_data_workers(ranks: Ranks, *, loading: bool = True) -> Iterator[None]:
    """Turn the errors of a killed data worker into one that says what to do.

    torch raises a RuntimeError wherever the process is at that moment, even while it handles the other symptom: a
    broken connection over which a batch was coming.

    Args:
        ranks: who this process is.
        loading: whether batches are loaded meanwhile, so that a broken connection is a worker's.

    Raises:
        RetroflowError: a data worker was killed. One that hangs, for example on a network file system, is waited for.
    """
    try:
        yield
    except RetroflowError as error:
        if plain := _of_worker(error):
            raise plain from error
        raise
    except (RuntimeError, ConnectionError, EOFError) as error:
        reported = next((each for each in _chain(error) if str(each).startswith("DataLoader worker")), None)
        if reported is None and (isinstance(error, RuntimeError) or not loading):
            raise
        reason = str(reported or error).strip().rstrip(".") or "its connection ended"
        whose = f"rank {ranks.rank} of {ranks.world_size}" if ranks.world_size > 1 else "training"
        raise RetroflowError(
            f"{whose} lost a data worker: {reason} (out of memory?). The same "
            "command with resume='last' continues from the last checkpoint; data.num_workers=0 needs no such processes."
        ) from error


class RetroData(pl.LightningDataModule):
    """Serves the training split in the order of `StepBatches`, from the trainer's step on.

    Lightning restores `trainer.global_step` before it calls `train_dataloader`, so the position in the data needs no
    state of its own.
    """

    def __init__(self, dataset: SequenceDataset, options: TrainerOptions, *, seed: int, num_workers: int = 0) -> None:
        super().__init__()
        self._dataset, self._options, self._seed, self._num_workers = dataset, options, seed, num_workers

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        batches = StepBatches(
            num_chunks=len(self._dataset.chunks),
            sequence_chunks=self._dataset.sequence_chunks,
            batch_size=self._options.batch_size,
            accumulate=self._options.accumulate,
            seed=self._seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            start_step=self.trainer.global_step,
            shifts=not self._dataset.answers_only,
        )
        return DataLoader(
            self._dataset,
            batch_sampler=batches,
            collate_fn=_as_it_is,
            num_workers=self._num_workers,
            worker_init_fn=partial(_start_worker, os.getpid()),
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )
