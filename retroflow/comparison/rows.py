"""The rows of a comparison: for each mode of `retroflow/evaluation/modes.py` a function that measures it.

To add a row, declare a `Mode` there, write `def NAME(subject: Subject) -> Measured` here (or build it with one of the
functions below), and enter it in `ROWS`. The function is called once, when the row is begun or continued. What it
returns is called with batches of sequences, and gives the nats of their tokens. Progress, stopping, continuing,
seconds, memory, intervals and the table come by themselves. A batch must get the same numbers whatever was measured
before it; `subject.model.forget()` is called before each.

Shapes: b sequences of one length, n tokens of a sequence, m tokens of a chunk, k neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.comparison.subject import Subject, Table
from retroflow.data import Batch
from retroflow.data.windows import WindowTable
from retroflow.evaluation.attribution import at_random, random_windows, shuffled, shuffled_windows
from retroflow.evaluation.measuring import token_losses
from retroflow.evaluation.prompted import Prompting, prompted_losses, ram
from retroflow.protocols import Int64Array


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

    return Measured(nats)


def prompted(subject: Subject, prompting: Prompting) -> Measured:
    """Measure the model without retrieval, with the neighbours of whole chunks in its prompt."""
    losses = prompted_losses(subject.model, subject.placement, prompting, advance=lambda prompts: subject.check())

    def nats(sequences: Int64Array) -> NDArray[np.float32]:
        found: NDArray[np.float32] = losses(subject.batch(sequences, subject.splits.validation_neighbours)).numpy()
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
    return reading(subject, shuffled(found, seed=subject.seed))


def _random(subject: Subject) -> Measured:
    found, count = subject.found, len(subject.splits.database)
    if isinstance(found, WindowTable):
        return reading(subject, random_windows(found, database_chunks=count, seed=subject.seed))
    return reading(subject, at_random(found.shape, database_chunks=count, seed=subject.seed))


def _half(subject: Subject, *, continuation: bool) -> Measured:
    m = subject.splits.valid_chunks.chunk_length

    def change(batch: Batch) -> Batch:
        assert batch.retrieved_mask is not None
        mask = batch.retrieved_mask.clone()  # [b, W, k, 2m]
        mask[..., slice(0, m) if continuation else slice(m, None)] = False
        return batch._replace(retrieved_mask=mask)

    return reading(subject, subject.found, change)


def _in_context_ram(subject: Subject) -> Measured:
    return prompted(subject, ram(subject.sequence_length, step=subject.splits.valid_chunks.chunk_length))


ROWS: dict[str, Callable[[Subject], Measured]] = {
    "off": _off,
    "on": _on,
    "shuffled": _shuffled,
    "random": _random,
    "neighbour_only": partial(_half, continuation=False),
    "continuation_only": partial(_half, continuation=True),
    "in_context_first": partial(prompted, prompting=Prompting(passages=1)),
    "in_context": partial(prompted, prompting=Prompting()),
    "in_context_ram": _in_context_ram,
}
"""By the name of the mode."""
