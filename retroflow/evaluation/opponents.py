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
from numpy.typing import NDArray
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

TRAINED = ("base_trained", "in_context_trained", "in_context_trained_random")
"""Opponents with as many weights trained for as long (retroflow/training/trained_opponents.py); the last one is
in_context_trained with random chunks as passages."""

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
        measures: by mode: "on", "random", "off", the ways of `promptings`, and those of `TRAINED` if they were trained;
            of the compared chunks only.
        sequences: number of sequences in the sample.
        of: sequences of the validation split.
        documents: number of documents that the compared chunks belong to.
        intervals: 95 % intervals of differences in nats per token, and of `recovered`; None where one has no bounds.
        trained: of each opponent that was trained "weights", "steps" and "seconds".
    """

    measures: dict[str, Measure]
    sequences: int
    of: int
    documents: int
    intervals: dict[str, Interval | None] = field(default_factory=dict)
    trained: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def recovered(self) -> float | None:
        """(off - on) / (off - in_context) of the losses; None if the prompt does not lower the loss."""
        return self._recovered("off", "in_context")

    @property
    def recovered_trained(self) -> float | None:
        """The same of the trained opponents; None if there are none, or the prompt does not lower their loss."""
        return self._recovered("base_trained", "in_context_trained") if TRAINED[0] in self.measures else None

    def _recovered(self, off: str, in_context: str) -> float | None:
        without, on, prompted = (self.measures[mode].loss for mode in (off, "on", in_context))
        return (without - on) / (without - prompted) if prompted < without else None

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
            f"neighbours gain in the base's prompt.{few}",
            *self._of_trained(),
        ]

    def _of_trained(self) -> list[str]:
        if not self.trained:
            return []
        on, at_random, *others = (self.measures[mode].loss for mode in ("on", "random", *TRAINED))
        without, prompted, prompted_at_random = others
        return [
            f"With as many weights trained for as long, the base alone has {without:.4f} and in-context retrieval "
            f"{prompted:.4f} nats per token; reading has {on:.4f}. Found neighbours gain {at_random - on:.4f} over "
            f"random ones where they are read, and {prompted_at_random - prompted:.4f} in that prompt."
        ]


def promptings(sequence_length: int) -> dict[str, Prompting]:
    """Return the ways in which neighbours are put into the prompt, for sequences of so many tokens."""
    return {
        "in_context": Prompting(),
        "in_context_ram": Prompting(passages=1, passage_tokens=RAM_PASSAGE_TOKENS, length=sequence_length),
    }


@dataclass(frozen=True)
class Sample:
    """The sequences that opponents are compared on, and how they are measured.

    Attributes:
        splits: the data.
        sequences: int64 [s], ascending, of the validation split.
        placement: device and precision.
        batch_size: sequences of a batch.
        advance: called with the number of finished sequences; may raise to stop.
    """

    splits: Splits
    sequences: Int64Array
    placement: Placement
    batch_size: int
    advance: Callable[[int], None]

    @property
    def starts(self) -> Int64Array:
        """First chunk of each sequence, int64 [s]."""
        return self.sequences * self.splits.sequence_chunks

    @property
    def chunks(self) -> Int64Array:
        """The compared chunks int64 [c]: all but the first of each sequence."""
        chunks = (self.starts[:, None] + np.arange(1, self.splits.sequence_chunks)).ravel()
        return chunks[chunks < len(self.splits.valid_chunks)]

    @property
    def documents(self) -> Int64Array:
        """The document of each compared chunk, int64 [c]."""
        return np.asarray(self.splits.valid_chunks.document_ids[self.chunks], dtype=np.int64)

    def restricted(self, measure: Measure) -> Measure:
        """Return a measure of the compared chunks only, which take their share of the time."""
        part = measure.of_chunks(self.chunks)
        tokens = int(part.chunk_tokens.sum())
        return replace(
            part,
            nats=float(part.chunk_nats.sum()),
            tokens=tokens,
            bytes=int(self.splits.valid_chunks.num_bytes[self.chunks].sum()),
            seconds=measure.seconds_per_token * tokens,
        )

    def prompted(self, model: Any, neighbours: Int64Array, prompting: Prompting, like: Measure) -> Measure:
        """Measure a model's base with neighbours in its prompt.

        Args:
            model: a `RetrievalModel` with a `context_length`, in evaluation mode.
            neighbours: int64 [N, k] of the validation chunks.
            prompting: how they are put into the prompt.
            like: a measure of the same chunks.
        """
        began, nats = time.perf_counter(), np.zeros(len(self.splits.valid_chunks))
        batches = self.splits.validation(neighbours).in_order(self.batch_size, self.sequences)
        for numbers, of_chunks in _nats_of_chunks(model, self.placement, batches, self.starts, prompting, self.advance):
            nats[numbers] = of_chunks
        nats = nats[self.chunks]
        return replace(like, nats=float(nats.sum()), seconds=time.perf_counter() - began, chunk_nats=nats)


def compare(model: Any, sample: Sample, measures: Mapping[str, Measure], *, seed: int) -> Opponents | None:
    """Measure the opponents of reading.

    Args:
        model: a `RetrievalModel` with a `context_length`, in evaluation mode.
        sample: what they are measured on.
        measures: "on", "random" and "off" of these sequences, among others.
        seed: of the intervals.

    Returns:
        None if no sequence has a second chunk.
    """
    if not len(sample.chunks):
        return None
    splits = sample.splits
    found = {mode: sample.restricted(measures[mode]) for mode in ("on", "random", "off")}
    for mode, prompting in promptings(splits.sequence_chunks * splits.valid_chunks.chunk_length).items():
        found[mode] = sample.prompted(model, splits.validation_neighbours, prompting, found["off"])
    return Opponents(
        measures=found,
        sequences=len(sample.sequences),
        of=len(splits.validation()),
        documents=len(np.unique(sample.documents)),
        intervals=intervals_of(found, sample.documents, seed=seed),
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


def padded(inputs: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs of several lengths as tokens int64 [b, t], and the targets int64 [b, m] of their last positions.

    The targets are int64 [b, t], too. Padding is after all that is predicted.
    """
    longest, m = max(map(len, inputs)), targets.shape[1]
    tokens = torch.stack([F.pad(row, (0, longest - len(row))) for row in inputs])
    wanted = torch.full_like(tokens, NOT_PREDICTED)
    for row, of_row in enumerate(inputs):
        wanted[row, len(of_row) - m : len(of_row)] = targets[row]
    return tokens, wanted


@torch.no_grad()
def _nats(model: Any, placement: Placement, inputs: list[Tensor], targets: Tensor) -> Any:
    """Return float64 [b], the nats of targets int64 [b, m] after the last m tokens of each input; off is the base."""
    tokens, wanted = padded(inputs, targets)
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
    found["recovered"] = _interval_of_share(off - on, off - losses["in_context"])
    if TRAINED[0] in losses:
        without, prompted, at_random = (losses[mode] for mode in TRAINED)
        found["recovered_trained"] = _interval_of_share(without - on, without - prompted)
        found["gain_over_random_minus_in_context_trained"] = interval(losses["random"] - on - (at_random - prompted))
    if len(nats["on"]) < 2:  # one document says nothing about others
        return dict.fromkeys(found)
    return found


def _interval_of_share(gains: NDArray[np.float64], of: NDArray[np.float64]) -> Interval | None:
    """Return the interval of gains / of; a share of a gain that may be nothing has no bounds."""
    return interval(gains / of) if (of > 0).all() else None
