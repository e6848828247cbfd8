"""What a pretrained base makes of the same neighbours if they stand in its prompt, on the same tokens.

Prompts are those of retroflow/evaluation/prompted.py, one for each chunk. Every chunk of a sequence but its first is
compared, which has no neighbours.

Shapes: b sequences, m tokens of a chunk, k neighbours, c compared chunks, N validation chunks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.evaluation.intervals import Interval, by_document, interval, resampled_losses
from retroflow.evaluation.perplexity import Measure, measure
from retroflow.evaluation.prompted import RAM_PASSAGE_TOKENS, Prompting, prompted_losses
from retroflow.pipeline.splits import Splits
from retroflow.planning.placement import Placement
from retroflow.protocols import Int64Array

FEW_DOCUMENTS = 20
"""Below so many documents percentiles of the bootstrap are nearer to each other than they should be."""

TRAINED = ("base_trained", "in_context_trained", "in_context_trained_random")
"""Opponents with as many weights trained for as long (retroflow/training/trained_opponents.py); the last one is
in_context_trained with random chunks as passages."""


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
        trained: of each opponent that was trained "weights", "steps", "seconds" and "cpu_seconds".
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
        steps = [int(self.trained[mode]["steps"]) for mode in TRAINED[:2]]
        return [
            f"With as many weights trained for as long, the base alone has {without:.4f} ({steps[0]:,} steps) and "
            f"in-context retrieval {prompted:.4f} nats per token ({steps[1]:,} steps); reading has {on:.4f}. Found "
            f"neighbours gain {at_random - on:.4f} over random ones where they are read, and "
            f"{prompted_at_random - prompted:.4f} in that prompt."
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

    def prompted(self, model: Any, neighbours: Int64Array, prompting: Prompting) -> Measure:
        """Measure a model without retrieval with neighbours in its prompt.

        Args:
            model: a `RetrievalModel` that gives its last states, in evaluation mode.
            neighbours: int64 [N, k] of the validation chunks.
            prompting: how they are put into the prompt.
        """
        return self.restricted(
            measure(
                prompted_losses(model, self.placement, prompting, advance=self.advance),
                self.splits.validation(neighbours).in_order(self.batch_size, self.sequences),
                num_chunks=len(self.splits.valid_chunks),
                chunk_length=self.splits.valid_chunks.chunk_length,
                advance=self.advance,
                starts=self.starts,
            )
        )


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
        found[mode] = sample.prompted(model, splits.validation_neighbours, prompting)
    return Opponents(
        measures=found,
        sequences=len(sample.sequences),
        of=len(splits.validation()),
        documents=len(np.unique(sample.documents)),
        intervals=intervals_of(found, sample.documents, seed=seed),
    )


def intervals_of(measures: Mapping[str, Measure], documents: Int64Array, *, seed: int) -> dict[str, Interval | None]:
    """Return the 95 % intervals of the differences between modes, and of `recovered`.

    Args:
        measures: by mode, of the same chunks; "on" and "off" among them.
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
    if "in_context" in losses:
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
