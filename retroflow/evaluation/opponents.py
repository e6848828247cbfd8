"""What a pretrained base makes of the same neighbours if they stand in its prompt, on the same tokens.

In-context retrieval predicts chunk u + 1 of a sequence from

    [passages for chunk u, the best one first] [the sequence's tokens up to chunk u + 1]

through the base alone, computed anew for every chunk, as the neighbours of chunk u become known when it ends. A passage
is a neighbour and its continuation, without its padding; nothing stands between passages and text. A chunk without
neighbours is predicted without passages. Every chunk of a sequence but its first is scored, which has no neighbours.

Shapes: b sequences, l chunks of a sequence, m tokens of a chunk, k neighbours, c compared chunks, N validation chunks.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from retroflow.data import Batch
from retroflow.data.batch import NOT_PREDICTED
from retroflow.evaluation.intervals import Interval, by_document, interval, resampled_losses
from retroflow.evaluation.perplexity import Measure
from retroflow.pipeline.splits import Splits
from retroflow.planning.placement import Placement
from retroflow.protocols import Int64Array

FEW_DOCUMENTS = 20
"""Below so many documents percentiles of the bootstrap are nearer to each other than they should be."""

RAM_PASSAGE_TOKENS = 256
"""The most tokens of a passage. Source: Ram et al. 2023."""


@dataclass(frozen=True)
class Prompting:
    """How neighbours are put into the prompt.

    Attributes:
        passages: how many, the best ones; None for all.
        passage_tokens: tokens of a passage, from its beginning; None for all.
        length: tokens of the prompt; None for the base's context.
    """

    passages: int | None = None
    passage_tokens: int | None = None
    length: int | None = None


@dataclass(frozen=True)
class Opponents:
    """Losses of reading and of its opponents on the same tokens of a sample.

    Attributes:
        measures: by mode: "on", "off", and the ways of `promptings`; of the compared chunks only.
        sequences: number of sequences in the sample.
        of: sequences of the validation split.
        documents: number of documents that the compared chunks belong to.
        intervals: 95 % intervals of differences in nats per token, and of `recovered`; None where one has no bounds.
    """

    measures: dict[str, Measure]
    sequences: int
    of: int
    documents: int
    intervals: dict[str, Interval | None] = field(default_factory=dict)

    @property
    def recovered(self) -> float | None:
        """(off - on) / (off - in_context) of the losses; None if the prompt does not lower the loss."""
        on, off, in_context = (self.measures[mode].loss for mode in ("on", "off", "in_context"))
        return (off - on) / (off - in_context) if in_context < off else None

    def findings(self) -> list[str]:
        """Return what the comparison says."""
        if self.recovered is None:
            return ["The same neighbours in the base's prompt do not lower its loss: `recovered` means nothing here."]
        bounds = self.intervals["recovered"]
        stated = "no 95% interval" if bounds is None else f"95% interval {bounds[0]:.1%} to {bounds[1]:.1%}"
        few = ""
        if self.documents < FEW_DOCUMENTS:
            few = " These are few documents, and intervals too narrow: raise trainer.in_context_sequences."
        return [
            f"Reading recovers {self.recovered:.1%} ({stated}, {self.documents:,} documents) of what the same "
            f"neighbours gain in the base's prompt.{few}"
        ]


def promptings(sequence_length: int) -> dict[str, Prompting]:
    """Return the ways in which neighbours are put into the prompt, for sequences of so many tokens."""
    return {
        "in_context": Prompting(),
        "in_context_ram": Prompting(passages=1, passage_tokens=RAM_PASSAGE_TOKENS, length=sequence_length),
    }


def compare(
    model: Any,
    placement: Placement,
    splits: Splits,
    measures: Mapping[str, Measure],
    sequences: Int64Array,
    *,
    batch_size: int,
    seed: int,
    advance: Callable[[int], None],
) -> Opponents | None:
    """Measure the opponents of reading.

    Args:
        model: a `RetrievalModel` with a `context_length`, in evaluation mode.
        placement: its device and precision.
        splits: the data.
        measures: "on" and "off" of these sequences, among others.
        sequences: int64 [s], ascending, of the validation split.
        batch_size: sequences of a batch.
        seed: of the intervals.
        advance: called with the number of finished sequences; may raise to stop.

    Returns:
        None if no sequence has a second chunk.
    """
    starts = sequences * splits.sequence_chunks
    chunks = _compared_chunks(splits, starts)
    if not len(chunks):
        return None
    length = splits.sequence_chunks * splits.valid_chunks.chunk_length
    num_bytes = int(splits.valid_chunks.num_bytes[chunks].sum())
    found = {mode: _restricted(measures[mode], chunks, num_bytes) for mode in ("on", "off")}
    for mode, prompting in promptings(length).items():
        began = time.perf_counter()
        nats = np.zeros(len(splits.valid_chunks))
        batches = splits.validation(splits.validation_neighbours).in_order(batch_size, sequences)
        for chunk_numbers, of_chunks in _nats_of_chunks(model, placement, batches, starts, prompting, advance):
            nats[chunk_numbers] = of_chunks
        found[mode] = replace(
            found["off"],
            nats=float(nats[chunks].sum()),
            seconds=time.perf_counter() - began,
            chunk_nats=nats[chunks],
        )
    documents = np.asarray(splits.valid_chunks.document_ids[chunks], dtype=np.int64)
    return Opponents(
        measures=found,
        sequences=len(sequences),
        of=len(splits.validation()),
        documents=len(np.unique(documents)),
        intervals=intervals_of(found, documents, seed=seed),
    )


def _compared_chunks(splits: Splits, starts: Int64Array) -> Int64Array:
    """Return the chunks int64 [c] of sequences that begin at chunks `starts` [s], without the first of each."""
    chunks = (starts[:, None] + np.arange(1, splits.sequence_chunks)).ravel()
    return chunks[chunks < len(splits.valid_chunks)]


def _restricted(measure: Measure, chunks: Int64Array, num_bytes: int) -> Measure:
    """Return a measure of some chunks only, which take their share of the time."""
    part = measure.of_chunks(chunks)
    tokens = int(part.chunk_tokens.sum())
    return replace(
        part,
        nats=float(part.chunk_nats.sum()),
        tokens=tokens,
        bytes=num_bytes,
        seconds=measure.seconds_per_token * tokens,
    )


def _nats_of_chunks(
    model: Any,
    placement: Placement,
    batches: Iterator[Batch],
    starts: Int64Array,
    prompting: Prompting,
    advance: Callable[[int], None],
) -> Iterator[tuple[Int64Array, Any]]:
    """Yield numbers of chunks int64 [b] and their nats float64 [b]."""
    m, done = model.config.chunk_length, 0
    for batch in batches:
        num_rows, length = batch.tokens.shape
        of_rows = starts[done : done + num_rows]
        done += num_rows
        for chunk in range(1, length // m):
            inputs = [prompt_of(batch, row, chunk, m, prompting, model.context_length) for row in range(num_rows)]
            targets = batch.targets[:, chunk * m - 1 : (chunk + 1) * m - 1]
            yield of_rows + chunk, _nats(model, placement, inputs, targets)
            advance(0)  # may stop here
        advance(num_rows)


def prompt_of(batch: Batch, row: int, chunk: int, m: int, prompting: Prompting, context_length: int) -> Tensor:
    """Return the tokens int64 [t] from whose last m positions the tokens of a chunk are predicted.

    Where they would be too many, the text is cut at its left, but the chunk before the predicted one stays; then the
    passages are cut at their right.
    """
    assert batch.retrieved is not None and batch.retrieved_mask is not None
    retrieved, real = batch.retrieved[row, chunk - 1], batch.retrieved_mask[row, chunk - 1]  # [k, r]
    passages = [tokens[is_real] for tokens, is_real in zip(retrieved, real, strict=True) if is_real.any()]
    passages = [passage[: prompting.passage_tokens] for passage in passages[: prompting.passages]]
    text = batch.tokens[row, : (chunk + 1) * m - 1]
    room = min(prompting.length or context_length, context_length)
    text = text[-max(room - sum(map(len, passages)), 2 * m - 1) :][-room:]
    return torch.cat([torch.cat([*passages, text[:0]])[: room - len(text)], text])


@torch.no_grad()
def _nats(model: Any, placement: Placement, inputs: list[Tensor], targets: Tensor) -> Any:
    """Return float64 [b], the nats of targets int64 [b, m] after the last m tokens of each input; off is the base."""
    longest, m = max(map(len, inputs)), targets.shape[1]
    tokens = torch.stack([F.pad(row, (0, longest - len(row))) for row in inputs])  # padding is after all that is scored
    wanted = torch.full_like(tokens, NOT_PREDICTED)
    for row, of_row in enumerate(inputs):
        wanted[row, len(of_row) - m : len(of_row)] = targets[row]
    with torch.autocast(placement.accelerator, torch.bfloat16, enabled=placement.uses_bf16):
        nats: Tensor = model.loss(tokens.to(placement.device), wanted.to(placement.device))
    return nats.double().cpu().numpy()


def intervals_of(measures: Mapping[str, Measure], documents: Int64Array, *, seed: int) -> dict[str, Interval | None]:
    """Return the 95 % intervals of the differences between modes, and of `recovered`.

    Args:
        measures: by mode, of the same chunks.
        documents: int64 [c], the document of each chunk.
        seed: of the bootstrap.
    """
    nats = {mode: by_document(measure.chunk_nats, documents) for mode, measure in measures.items()}
    losses = resampled_losses(nats, by_document(measures["off"].chunk_tokens, documents), seed=seed)
    on, off = losses["on"], losses["off"]
    found: dict[str, Interval | None] = {"on_minus_off": interval(on - off)}
    for mode in losses:
        if mode in ("on", "off"):
            continue
        found[f"{mode}_minus_off"] = interval(losses[mode] - off)
        found[f"on_minus_{mode}"] = interval(on - losses[mode])
    gains = off - losses["in_context"]
    # A share of a gain that may be nothing has no bounds.
    has_bounds = bool((gains > 0).all())
    found["recovered"] = interval((off - on) / gains) if has_bounds else None
    if len(nats["on"]) < 2:  # one document says nothing about others
        return dict.fromkeys(found)
    return found
