"""A causality probe of a loaded model on real text: what comes later must change nothing earlier.

A model that sees the token it predicts, or neighbours of a chunk before the chunk has ended, has a loss that means
nothing. The probe changes the tokens from a place on, and the neighbours of a window, and compares the logits before.

Shapes: n tokens of a sequence, W windows, m tokens of a chunk, s tokens between two lookups, v vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from retroflow.comparison.subject import Subject
from retroflow.data import Batch
from retroflow.data.windows import WindowTable
from retroflow.errors import RetroflowError

MOST_CHANGE = {"fp32": 1e-3, "bf16": 0.05}
"""The largest change of a log-probability that rounding may make, in nats."""


def probe(subject: Subject) -> dict[str, Any]:
    """Probe the model on the first compared sequence.

    Returns:
        For the report: "passed", "sequences", "changes" (how many were made), "largest" (nats), and "effect": the
        largest change of a log-probability that other neighbours made where they may be read; null if there are none.

    Raises:
        RetroflowError: an earlier logit changed.
    """
    table = subject.found if subject.reads else None
    step = table.step if isinstance(table, WindowTable) else None
    batch = subject.batch(subject.sequences[:1], table)
    m, n = subject.splits.valid_chunks.chunk_length, batch.tokens.shape[1]
    most = MOST_CHANGE["bf16" if subject.placement.uses_bf16 else "fp32"]
    generator = torch.Generator().manual_seed(subject.seed)
    places = sorted({place for place in (1, m - 1, n // 2 + 1, n - 1) if 0 < place < n})
    largest, changes = 0.0, 0
    effect: float | None = None
    readings = {"with retrieval": batch, "without retrieval": batch.without_retrieval()}
    for how, given in readings.items() if subject.reads else [("without retrieval", batch)]:
        before = _log_probabilities(subject, given, step)
        for place in places:
            after = _log_probabilities(subject, _with_other_tokens(subject, given, place, generator), step)
            change = _largest(before[:place], after[:place])
            largest, changes = max(largest, change), changes + 1
            _refuse(change, most, f"{how}, logits before token {place} change with the tokens from there on")
        if given.retrieved is None:
            continue
        for window in sorted({0, given.retrieved.shape[1] // 2, given.retrieved.shape[1] - 1}):
            first = m - 1 + window * (step or m)
            after = _log_probabilities(subject, _with_other_neighbours(subject, given, window, generator), step)
            change = _largest(before[:first], after[:first])
            effect = max(effect or 0.0, _largest(before[first:], after[first:]))
            largest, changes = max(largest, change), changes + 1
            _refuse(change, most, f"logits before token {first} change with neighbours that are found there")
    subject.model.forget()
    counts = {"sequences": 1, "changes": changes}
    return {"passed": True, **counts, "largest": largest, "allowed": most, "effect": effect}


@torch.no_grad()
def _log_probabilities(subject: Subject, batch: Batch, step: int | None) -> Tensor:
    placement = subject.placement
    batch = batch.to(placement.device)
    with torch.autocast(placement.accelerator, torch.bfloat16, enabled=placement.uses_bf16):
        retrieved, mask = batch.retrieved, batch.retrieved_mask
        logits: Tensor = subject.model(batch.tokens, retrieved, mask, padding=batch.padding, retrieval_step=step)
    return logits[0].float().log_softmax(-1).cpu()  # [n, v]


def _with_other_tokens(subject: Subject, batch: Batch, place: int, generator: torch.Generator) -> Batch:
    tokens = batch.tokens.clone()
    tokens[:, place:] = _others(tokens[:, place:], subject, generator)
    return batch._replace(tokens=tokens)


def _with_other_neighbours(subject: Subject, batch: Batch, window: int, generator: torch.Generator) -> Batch:
    assert batch.retrieved is not None and batch.retrieved_mask is not None
    retrieved, mask = batch.retrieved.clone(), batch.retrieved_mask.clone()
    retrieved[:, window] = _others(retrieved[:, window], subject, generator)
    mask[:, window] |= ~mask[:, window].any()
    return batch._replace(retrieved=retrieved, retrieved_mask=mask)


def _others(tokens: Tensor, subject: Subject, generator: torch.Generator) -> Tensor:
    """Return other tokens of the vocabulary, each different from the one in its place."""
    size = subject.splits.valid_chunks.vocabulary_size
    return (tokens + torch.randint(1, max(2, size), tokens.shape, generator=generator)) % size


def _largest(before: Tensor, after: Tensor) -> float:
    change = float((before - after).abs().max()) if len(before) else 0.0
    return change if change == change else float("inf")


def _refuse(change: float, most: float, what: str) -> None:
    if change > most:
        raise RetroflowError(
            f"the causality probe failed, and nothing was compared: {what}, by up to {change:.3g} nats. The model sees "
            "what it predicts, so its losses mean nothing; mend the model."
        )
