"""The rows of a comparison: for each mode of `retroflow/evaluation/modes.py` a function that measures it.

To add a row, declare a `Mode` there, write `def NAME(subject: Subject) -> Measured` here (or build it with one of the
functions below), and enter it in `ROWS`. The function is called once, when the row is begun or continued. What it
returns is called with batches of sequences, and gives the nats of their tokens. Progress, stopping, continuing,
seconds, memory, intervals and the table come by themselves. A batch must get the same numbers whatever was measured
before it; `subject.model.forget()` is called before each.

Shapes: b sequences of one length, n tokens of a sequence, m tokens of a chunk, k neighbours.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retroflow.comparison.subject import Subject, Table, evenly_spaced
from retroflow.console import progress
from retroflow.data import Batch, SequenceDataset
from retroflow.data.batch import NOT_PREDICTED
from retroflow.data.windows import WindowTable
from retroflow.errors import UsageError
from retroflow.evaluation.attribution import (
    at_random,
    continuation_only,
    neighbour_only,
    random_windows,
    shuffled,
    shuffled_windows,
)
from retroflow.evaluation.knn_lm import (
    TUNING_SEQUENCES,
    KnnOptions,
    build_datastore,
    documents_of,
    half_of_positions,
    halves,
    knn_losses,
    sequences_to_use,
    tune,
)
from retroflow.evaluation.measuring import token_losses
from retroflow.evaluation.oracle import oracle_losses
from retroflow.evaluation.prompted import RAM_CANDIDATES, Prompting, prompted_losses, ram
from retroflow.evaluation.topics import number_of_topics, topic_matched, topic_matched_windows, topics_of
from retroflow.pipeline.lookups import OtherDocuments
from retroflow.protocols import Int64Array

SHARE_READ = "share_read"
"""Fact about a row that reads neighbours: the share of its lookups that have text to read."""

TOPICS = "topics"
"""Fact about topic_matched: the number of topics."""


@dataclass(frozen=True)
class Measured:
    """How a row is measured.

    Attributes:
        nats: sequences int64 [b] of one length -> float32 [b, n], nats of what each position predicts, 0 where nothing
            is predicted.
        facts: JSON values to be shown with the row, such as what was tuned.
        together: sequences of a call; None for the batch size.
    """

    nats: Callable[[Int64Array], NDArray[np.float32]]
    facts: dict[str, Any] = field(default_factory=dict)
    together: int | None = None


def reading(subject: Subject, table: Table, change: Callable[[Batch], Batch] = lambda batch: batch) -> Measured:
    """Measure the model on the neighbours of a table.

    Args:
        subject: what is compared.
        table: what is read.
        change: applied to each batch.
    """
    step = table.step if isinstance(table, WindowTable) else None
    losses = token_losses(subject.model, subject.placement, step)

    def nats(sequences: Int64Array) -> NDArray[np.float32]:
        found: NDArray[np.float32] = losses(change(subject.batch(sequences, table))).float().cpu().numpy()
        return found

    return Measured(nats, {} if table is None else {SHARE_READ: _share_read(subject, table, change)})


def _share_read(subject: Subject, table: Table, change: Callable[[Batch], Batch]) -> float:
    """Return the share of the lookups that have text to read, 0 to 1."""
    read = []
    for sequence in subject.sequences:
        subject.check()
        mask = change(subject.batch(sequence[None], table)).retrieved_mask
        assert mask is not None
        read.append(mask.flatten(2).any(dim=-1).flatten())
    return float(torch.cat(read).float().mean())


def prompted(
    subject: Subject, prompting: Prompting, look_up: Callable[[Int64Array], WindowTable] | None = None
) -> Measured:
    """Measure the model without retrieval, with neighbours in its prompt.

    Args:
        subject: what is compared.
        prompting: how they are put there.
        look_up: finds them for sequences int64 [b]; None for those that were found for whole chunks.
    """
    losses = prompted_losses(subject.model, subject.placement, prompting, advance=lambda prompts: subject.check())

    def nats(sequences: Int64Array) -> NDArray[np.float32]:
        table = subject.splits.validation_neighbours if look_up is None else look_up(sequences)
        found: NDArray[np.float32] = losses(subject.batch(sequences, table)).numpy()
        return found

    return Measured(nats)


def _off(subject: Subject) -> Measured:
    return reading(subject, None)


def _on(subject: Subject) -> Measured:
    return reading(subject, subject.found)


def _shuffled(subject: Subject) -> Measured:
    found = subject.found
    if isinstance(found, WindowTable):
        return reading(subject, shuffled_windows(found, seed=subject.seed))
    if subject.looked_up_all:
        return reading(subject, shuffled(found, seed=subject.seed, questions=subject.splits.answers_only))
    table = np.full_like(found, -1)
    table[subject.chunks] = shuffled(found[subject.chunks], seed=subject.seed)
    return reading(subject, table)


def _random(subject: Subject) -> Measured:
    found, count = subject.found, len(subject.splits.database)
    if isinstance(found, WindowTable):
        return reading(subject, random_windows(found, database_chunks=count, seed=subject.seed))
    return reading(subject, at_random(found, database_chunks=count, seed=subject.seed))


def _topic_matched(subject: Subject) -> Measured:
    found, chunks = subject.found, subject.splits.valid_chunks
    topics = topics_of(chunks, subject.splits.validation_embeddings, seed=subject.seed)
    if isinstance(found, WindowTable):
        assert subject.search is not None
        search, k = subject.search(), found.ids.shape[-1]

        def nearest(windows: list[list[int]], excluded: Int64Array) -> Int64Array:
            subject.check()
            return search.nearest(windows, k, OtherDocuments(subject.splits.database, excluded)).ids

        length, count = subject.splits.sequence_chunks, len(topics.documents)
        table: Table = topic_matched_windows(found, chunks, topics, nearest, sequence_chunks=length)
    else:
        documents = np.asarray(chunks.document_ids[:])
        table, count = topic_matched(found, documents, topics), len(np.unique(documents[(found >= 0).any(axis=1)]))
    measured = reading(subject, table)
    return replace(measured, facts=measured.facts | {TOPICS: number_of_topics(count)})


def _half(subject: Subject, *, change: Callable[[Batch], Batch]) -> Measured:
    return reading(subject, subject.found, change)


def _oracle(subject: Subject) -> Measured:
    found, options = subject.found, subject.options
    step = found.step if isinstance(found, WindowTable) else subject.splits.valid_chunks.chunk_length
    k = found.ids.shape[-1] if isinstance(found, WindowTable) else found.shape[-1]
    best = oracle_losses(subject.model, subject.placement, k=k, step=step, advance=lambda _: subject.check())
    look_up = subject.looking_up(step=step, k=max(k, options.oracle_candidates))

    def nats(sequences: Int64Array) -> NDArray[np.float32]:
        candidates = subject.batch(sequences, look_up(sequences))
        losses: NDArray[np.float32] = best(candidates, subject.batch(sequences, found)).float().cpu().numpy()
        return losses

    return Measured(nats, {"candidates": max(k, options.oracle_candidates)})


def _in_context(subject: Subject, *, passages: int | None) -> Measured:
    stride, look_up = subject.options.in_context_stride, None
    if stride is not None and subject.search is not None:
        _check_stride("rows.in_context_stride", stride, subject.sequence_length)
        look_up = subject.looking_up(step=stride, k=subject.splits.validation_neighbours.shape[1])
    return prompted(subject, Prompting(passages=passages, step=None if look_up is None else stride), look_up)


def _in_context_ram(subject: Subject, *, reranked: bool) -> Measured:
    options = subject.options
    window = options.ram_window or subject.sequence_length
    _check_stride("rows.ram_stride", options.ram_stride, window - 1)
    least = max(subject.splits.valid_chunks.chunk_length, options.ram_rank + 1 if reranked else 0) + options.ram_stride
    if options.ram_window is not None and window < least:
        raise UsageError(
            f"rows.ram_window={window}: the last {least - 1} tokens of a window are text, so it has no room for a "
            f"passage; give {least} or more."
        )
    protocol = ram(
        window,
        step=options.ram_stride,
        passage_tokens=options.ram_passage,
        candidates=options.ram_candidates if reranked else 1,
        rank_tokens=options.ram_rank,
    )
    look_up = subject.looking_up(
        step=options.ram_stride, k=max(RAM_CANDIDATES, options.ram_candidates), query_tokens=options.ram_query
    )
    return prompted(subject, protocol, look_up)


def _check_stride(name: str, stride: int, most: int) -> None:
    if stride > most:
        raise UsageError(f"{name}={stride}: one prompt predicts so many tokens, and has room for {most}; give fewer.")


def _knn_lm(subject: Subject) -> Measured:
    model, placement, splits = subject.model, subject.placement, subject.splits
    options = KnnOptions(subject.options.knn_k, subject.options.knn_tokens, subject.batch_size, subject.seed)
    database = SequenceDataset(splits.database, sequence_chunks=splits.sequence_chunks)

    def advance(sequences: int) -> None:
        subject.check()
        shown(sequences)

    with progress("keys of kNN-LM", len(sequences_to_use(database, options)), "sequences") as shown:
        datastore = build_datastore(
            model,
            placement,
            database,
            options,
            excluded=documents_of(splits, subject.sequences),
            advance=advance,
        )
    half = halves(splits, subject.sequences, seed=subject.seed)

    def of_half(sequences: Int64Array, length: int) -> Tensor:
        starts = sequences * splits.sequence_chunks
        return half_of_positions(half, starts, length, splits.valid_chunks.chunk_length)

    def without_half(wanted: bool) -> Iterator[Batch]:
        for number in evenly_spaced(len(subject.sequences), TUNING_SEQUENCES, subject.seed):
            sequences = subject.sequences[number : number + 1]
            batch = subject.batch(sequences, None)
            is_used = of_half(sequences, batch.tokens.shape[1]) != wanted
            yield batch._replace(targets=torch.where(is_used, batch.targets, NOT_PREDICTED))

    mixtures = [tune(model, placement, datastore, without_half(wanted)) for wanted in (False, True)]
    losses = knn_losses(model, placement, datastore, *mixtures)

    def nats(sequences: Int64Array) -> NDArray[np.float32]:
        first, second = losses(subject.batch(sequences, None))
        mixed: NDArray[np.float32] = torch.where(of_half(sequences, first.shape[1]), second, first).numpy()
        return mixed

    return Measured(nats, {"keys": datastore.describe(), "mixtures": [asdict(each) for each in mixtures]})


OpenRow = Callable[[Subject], Measured]

ROWS: dict[str, OpenRow] = {
    "off": _off,
    "on": _on,
    "shuffled": _shuffled,
    "random": _random,
    "topic_matched": _topic_matched,
    "neighbour_only": partial(_half, change=neighbour_only),
    "continuation_only": partial(_half, change=continuation_only),
    "oracle": _oracle,
    "in_context_first": partial(_in_context, passages=1),
    "in_context": partial(_in_context, passages=None),
    "in_context_ram": partial(_in_context_ram, reranked=False),
    "in_context_ram_reranked": partial(_in_context_ram, reranked=True),
    "knn_lm": _knn_lm,
}
"""By the name of the mode."""
