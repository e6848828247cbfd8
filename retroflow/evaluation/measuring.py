"""Evaluate a model: validation loss with retrieval on, off, shuffled and random, and by overlap.

Shapes: b sequences, n tokens of a sequence, l chunks of a sequence, m tokens of a chunk, k neighbours, r = 2m, N
validation chunks, v vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroflow.data import Batch
from retroflow.data.batch import NOT_PREDICTED
from retroflow.data.windows import WindowTable
from retroflow.distributed.ranks import Ranks
from retroflow.errors import RetroflowError
from retroflow.evaluation.attribution import (
    SAME,
    WRONG,
    at_random,
    no_better,
    random_windows,
    share_without_neighbours,
    shuffled,
    shuffled_windows,
    without_effect,
)
from retroflow.evaluation.intervals import Interval
from retroflow.evaluation.leakage import by_overlap, overlaps_of
from retroflow.evaluation.opponents import Sample, compare, intervals_of, promptings
from retroflow.evaluation.perplexity import Measure, measure
from retroflow.evaluation.report import Report
from retroflow.pipeline.splits import Splits
from retroflow.planning.options import TrainerOptions
from retroflow.planning.placement import Placement
from retroflow.protocols import Int64Array

_LOGITS_AT_ONCE = 1 << 26
"""Logits in memory at one time during evaluation, 256 MB in float32."""


class Measurable(Protocol):
    """A model on its device and the data to measure it on; a training's `Job` is one."""

    @property
    def seed(self) -> int:
        """Seed of "shuffled", "random" and the sample."""
        ...

    @property
    def options(self) -> TrainerOptions:
        """Whether to retrieve, the batch size, and how many sequences to measure."""
        ...

    @property
    def placement(self) -> Placement:
        """Device and precision."""
        ...

    @property
    def splits(self) -> Splits:
        """The data."""
        ...

    @property
    def module(self) -> Any:
        """The module; its `model` is the network."""
        ...


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def token_losses(model: Any, placement: Placement, step: int | None = None) -> Callable[[Batch], Tensor]:
    """Return a function from a batch to float32 [b, n], nats of each position, 0 where nothing is predicted.

    Args:
        model: a `RetrievalModel`.
        placement: its device and precision.
        step: tokens between two lookups; None for a chunk's.
    """

    def losses(batch: Batch) -> Tensor:
        batch = batch.to(placement.device)
        num_rows, length = batch.tokens.shape
        rows = max(1, _LOGITS_AT_ONCE // (length * model.config.vocabulary_size))
        parts = [
            _losses_of(model, placement, step, batch.rows(first, first + rows)) for first in range(0, num_rows, rows)
        ]
        return torch.cat(parts)

    return losses


@torch.no_grad()
def _losses_of(model: Any, placement: Placement, step: int | None, batch: Batch) -> Tensor:
    with torch.autocast(placement.accelerator, torch.bfloat16, enabled=placement.uses_bf16):
        retrieved, mask = batch.retrieved, batch.retrieved_mask
        logits = model(batch.tokens, retrieved, mask, padding=batch.padding, retrieval_step=step)  # [b, n, v]
    flat = F.cross_entropy(
        logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=NOT_PREDICTED, reduction="none"
    )
    return flat.view(batch.targets.shape)


def estimate(job: Measurable, ranks: Ranks) -> dict[str, float]:
    """Estimate loss with and without retrieval, and the gap, on a few fixed validation sequences.

    The batches are divided over the ranks. Under FSDP all ranks compute each forward pass together, so a rank with
    fewer batches repeats one without counting it.
    """
    options = job.options
    dataset = job.splits.validation(job.splits.validation_neighbours if options.retrieval else None)
    full = len(dataset.chunks) // dataset.sequence_chunks
    wanted = min(full, options.validation_batches * options.eval_batch_size)
    if wanted == 0:
        return {}
    starts = np.linspace(0, full - 1, wanted).astype(np.int64) * dataset.sequence_chunks
    losses = token_losses(job.module.model, job.placement)
    firsts = range(0, wanted, options.eval_batch_size)
    sums = [0.0, 0.0, 0.0]  # nats on, nats off, tokens
    with evaluating(job.module.model):
        for turn in range(0, len(firsts), ranks.world_size):
            is_own = turn + ranks.rank < len(firsts)
            first = firsts[turn + ranks.rank] if is_own else 0
            batch = dataset.assemble(starts[first : first + options.eval_batch_size], dataset.sequence_chunks)
            on = float(losses(batch).sum(dtype=torch.float64)) if options.retrieval else 0.0
            off = float(losses(batch.without_retrieval()).sum(dtype=torch.float64))
            if is_own:
                measured = (on, off, float((batch.targets != NOT_PREDICTED).sum()))
                sums = [sum_ + value for sum_, value in zip(sums, measured, strict=True)]
    on, off, tokens = ranks.total(sums)
    measures = {"on": on, "off": off} if options.retrieval else {"off": off}
    values = {f"validation/loss_{mode}": nats / max(1, tokens) for mode, nats in measures.items()}
    if options.retrieval:
        values["validation/retrieval_gap"] = values["validation/loss_off"] - values["validation/loss_on"]
    return values


def measure_report(
    job: Measurable, *, training: dict[str, Any], advance: Callable[[int], None], windows: WindowTable | None = None
) -> Report:
    """Measure a job's model over the validation split, or the sample of it that `trainer.final_sequences` asks for.

    Args:
        job: its module's model is on the placement's device.
        training: how it was trained, for the report.
        advance: called with the number of finished sequences; may raise to stop.
        windows: neighbours of these sequences, looked up more often than once a chunk; None for those of the chunks.

    Raises:
        RetroflowError: the loss is not finite.
    """
    model, splits, options = job.module.model, job.splits, job.options
    found = splits.validation_neighbours
    read = found if windows is None else windows
    tables: dict[str, Int64Array | WindowTable | None] = {"off": None}
    if options.retrieval:
        tables |= _tables(job, read)
    sample = sample_of(job)
    starts = None if sample is None else sample * splits.sequence_chunks
    measures, opponents = {}, None
    with evaluating(model):
        for mode, table in tables.items():
            measures[mode] = measure(
                token_losses(model, job.placement, None if windows is None else windows.step),
                splits.validation(table).in_order(options.eval_batch_size, sample),
                num_chunks=len(splits.valid_chunks),
                chunk_length=splits.valid_chunks.chunk_length,
                advance=advance,
                starts=starts,
            )
            refuse_not_finite(measures[mode].nats, mode)
        if len(prompted := prompted_sequences(job)):
            compared = Sample(splits, prompted, job.placement, options.eval_batch_size, advance)
            opponents = compare(model, compared, measures, seed=job.seed)
    stated = None if sample is None else {"sequences": len(sample), "of": len(splits.validation())}
    if not options.retrieval:
        return Report(measures=measures, training=training, sample=stated)
    chunks = _chunks_of(splits, sample)
    sequences = np.arange(len(splits.validation())) if sample is None else sample
    overlaps = overlaps_of(splits, read, sequences, lookups_read=model.lookups_read)
    of_chunks = {mode: each.of_chunks(chunks) for mode, each in measures.items()}
    intervals = intervals_of(of_chunks, np.asarray(splits.valid_chunks.document_ids[chunks]), seed=job.seed)
    return Report(
        measures=measures,
        intervals=intervals,
        warnings=_warnings(of_chunks, intervals),
        without_neighbours=share_without_neighbours(found[chunks]),
        overlap=by_overlap(overlaps, of_chunks["on"], of_chunks["off"]),
        training=training,
        sample=stated,
        opponents=opponents,
    )


def _warnings(measures: Mapping[str, Measure], intervals: Mapping[str, Interval | None]) -> list[str]:
    """Return what must not be overlooked: retrieval without an effect, or no better than wrong neighbours."""
    on = measures["on"]
    same = [
        mode
        for mode, other in measures.items()
        if mode != "on" and (np.abs(on.chunk_nats - other.chunk_nats) <= SAME * np.maximum(1, on.chunk_tokens)).all()
    ]
    sentences = [without_effect(same)]
    for mode in WRONG:
        bounds = intervals[f"on_minus_{mode}"]
        below = None if bounds is None else (-bounds[1], -bounds[0])
        sentences.append(no_better(mode, measures[mode].loss - on.loss, below))
    return [sentence for sentence in sentences if sentence is not None]


def _tables(job: Measurable, found: Int64Array | WindowTable) -> dict[str, Int64Array | WindowTable | None]:
    """What is read in each way of retrieving."""
    if not isinstance(found, WindowTable):
        others = shuffled(found, seed=job.seed, questions=job.splits.answers_only)
        return {"on": found, "shuffled": others, "random": random_neighbours(job)}
    random = random_windows(found, database_chunks=len(job.splits.database), seed=job.seed)
    return {"on": found, "shuffled": shuffled_windows(found, seed=job.seed), "random": random}


def refuse_not_finite(nats: float, mode: str) -> None:
    """Refuse a loss that is not finite, in a mode of retrieval.

    Raises:
        RetroflowError: it is not.
    """
    if not math.isfinite(nats):
        raise RetroflowError(
            f"the validation loss with retrieval {mode} is {nats}: the model's weights are useless, and no report is "
            "written. Train a new one with a lower optimizer.learning_rate or more optimizer.warmup_steps."
        )


def random_neighbours(job: Measurable) -> Int64Array:
    """Return random chunks of the database in place of the validation chunks' neighbours, int64 [N_valid, k]."""
    splits = job.splits
    return at_random(splits.validation_neighbours, database_chunks=len(splits.database), seed=job.seed)


def sample_of(job: Measurable) -> Int64Array | None:
    """Return the validation sequences int64 [s] to measure, ascending; None for all of them.

    They are evenly spaced; the seed chooses the first one.
    """
    count, wanted = len(job.splits.validation()), job.options.final_sequences
    return None if wanted is None or wanted >= count else _evenly_spaced(count, wanted, job.seed)


def prompted_sequences(job: Measurable) -> Int64Array:
    """Return the sequences int64 [s] that are also measured with neighbours in the prompt, evenly spaced; or none."""
    if not job.options.retrieval or job.module.model.context_length is None or job.splits.answers_only:
        return np.empty(0, dtype=np.int64)
    sample = sample_of(job)
    measured = np.arange(len(job.splits.validation())) if sample is None else sample
    return measured[_evenly_spaced(len(measured), min(len(measured), job.options.in_context_sequences), job.seed)]


def _evenly_spaced(count: int, wanted: int, seed: int) -> Int64Array:
    offset = np.random.default_rng([seed, count]).random()
    return ((np.arange(wanted) + offset) * count / max(1, wanted)).astype(np.int64)


def _chunks_of(splits: Splits, sequences: Int64Array | None) -> Int64Array:
    """Return the chunks of some sequences of the validation split, or of all, ascending."""
    count = len(splits.valid_chunks)
    if sequences is None:
        return np.arange(count, dtype=np.int64)
    chunks = (sequences[:, None] * splits.sequence_chunks + np.arange(splits.sequence_chunks)).ravel()
    return chunks[chunks < count]


def sequences_to_measure(job: Measurable) -> int:
    """How many sequences `measure_report` evaluates, over all ways of retrieving."""
    sample = sample_of(job)
    count = len(job.splits.validation()) if sample is None else len(sample)
    modes = 4 if job.options.retrieval else 1
    return count * modes + len(prompted_sequences(job)) * len(promptings(1))
