"""Measure the rows of a comparison, in parts that are kept on disk, so that a stopped command continues.

Shapes: S sequences of a row, n tokens of a sequence.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from retroflow.comparison.row_file import RowFile, read_row, row_path, write_row
from retroflow.comparison.rows import OpenRow
from retroflow.comparison.subject import Subject, evenly_spaced
from retroflow.console import progress
from retroflow.evaluation.measuring import evaluating, refuse_not_finite
from retroflow.evaluation.modes import Mode
from retroflow.planning.machine_memory import peak_memory, reset_peak
from retroflow.protocols import Int64Array

SECONDS_BETWEEN_WRITES = 5.0
"""A killed command loses no more than this, and the batch that it was at."""


def sequences_of(mode: Mode, sequences: Int64Array, seed: int) -> Int64Array:
    """Return those of the compared sequences int64 [S] that a row is measured on."""
    most = len(sequences) if mode.most_sequences is None else mode.most_sequences
    return sequences[evenly_spaced(len(sequences), most, seed)]


def measure_rows(subject: Subject, rows: Sequence[tuple[Mode, OpenRow, str]], folder: Path) -> None:
    """Measure what is missing of some rows, and write it.

    Args:
        subject: what is compared.
        rows: each with the function that opens it, and the fingerprint of all that its numbers depend on.
        folder: of the comparison.

    Raises:
        RetroflowError: a loss is not finite, or a file cannot be written.
    """
    files = [_Place(row_path(folder, mode.name), made_of) for mode, _, made_of in rows]
    wanted = [sequences_of(mode, subject.sequences, subject.seed) for mode, _, _ in rows]
    found = [read_row(*file) or _nothing(subject) for file in files]
    missing = [len(sequences) - len(row.sequences) for sequences, row in zip(wanted, found, strict=True)]
    passes = sum(mode.passes * count for (mode, _, _), count in zip(rows, missing, strict=True))
    with progress("comparing", passes, "passes") as shown, evaluating(subject.model):
        for (mode, open_row, _), sequences, row, file in zip(rows, wanted, found, files, strict=True):

            def advance(count: int, mode: Mode = mode) -> None:
                shown(count * mode.passes)

            if len(row.sequences) < len(sequences):
                _measure_row(subject, open_row, (sequences, row), file, advance)


def _nothing(subject: Subject) -> RowFile:
    return RowFile(subject.sequences[:0], np.zeros((0, subject.sequence_length), dtype=np.float32))


class _Place(NamedTuple):
    """Where a row is kept, and the fingerprint of what it is made of."""

    path: Path
    made_of: str


def _measure_row(
    subject: Subject,
    open_row: OpenRow,
    begun: tuple[Int64Array, RowFile],
    file: _Place,
    advance: Callable[[int], None],
) -> None:
    """Measure what is missing of a row; `begun` are its sequences and what there is."""
    wanted, row = begun
    began = time.perf_counter()
    with _using(subject) as use:
        measured = open_row(subject)
    seconds = row.setup_seconds + time.perf_counter() - began
    row = replace(row, facts=measured.facts, setup_seconds=seconds, setup_forwards=use["forwards"])
    written = time.monotonic()
    try:
        missing = wanted[~np.isin(wanted, row.sequences)]
        for part in _parts(subject, missing, measured.together or subject.batch_size):
            subject.model.forget()  # or the numbers would depend on what was measured before
            began = time.perf_counter()
            with _using(subject) as use:
                nats = measured.nats(part)
            refuse_not_finite(float(nats.sum(dtype=np.float64)), file.path.stem)
            row = _with_part(row, part, nats, time.perf_counter() - began, use)
            if time.monotonic() - written > SECONDS_BETWEEN_WRITES:
                write_row(file.path, row, file.made_of)
                written = time.monotonic()
            subject.check()
            advance(len(part))
    finally:
        if len(row.sequences):
            write_row(file.path, row, file.made_of)


def _parts(subject: Subject, wanted: Int64Array, together: int) -> Iterator[Int64Array]:
    """Cut sequences into batches; a shorter last sequence of the text is one of its own."""
    num_full = len(subject.splits.valid_chunks) // subject.splits.sequence_chunks
    full = wanted[wanted < num_full]
    for first in range(0, len(full), together):
        yield full[first : first + together]
    if len(full) < len(wanted):
        yield wanted[len(full) :]


def _with_part(row: RowFile, part: Int64Array, nats: Any, seconds: float, use: dict[str, Any]) -> RowFile:
    whole = np.zeros((len(part), row.token_nats.shape[1]), dtype=np.float32)
    whole[:, : nats.shape[1]] = nats
    memory = [value for value in (row.memory, use["memory"]) if value is not None]
    return replace(
        row,
        sequences=np.concatenate([row.sequences, part]),
        token_nats=np.concatenate([row.token_nats, whole]),
        seconds=row.seconds + seconds,
        forwards=row.forwards + use["forwards"],
        memory=max(memory, default=None),
    )


@contextmanager
def _using(subject: Subject) -> Iterator[dict[str, Any]]:
    """Count the tokens that a model embeds, and the memory in use; the results are in what is yielded, at the end."""
    use: dict[str, Any] = {"forwards": 0, "memory": None}
    size, on_gpu = subject.model.config.vocabulary_size, subject.placement.accelerator == "cuda"

    def count(module: nn.Module, arguments: Any) -> None:
        if isinstance(module, nn.Embedding) and module.num_embeddings == size and arguments:
            use["forwards"] += arguments[0].numel()

    if on_gpu:
        torch.cuda.reset_peak_memory_stats(subject.placement.device)
    else:
        reset_peak()
    hook = register_module_forward_pre_hook(count)
    try:
        yield use
    finally:
        hook.remove()
        use["memory"] = torch.cuda.max_memory_allocated(subject.placement.device) if on_gpu else peak_memory()
