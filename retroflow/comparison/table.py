"""The numbers of a comparison, from its files: losses, gains with intervals, cost; all on the same tokens.

Shapes: S sequences, s of a row, n tokens of a sequence, l chunks of a sequence, D documents.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.comparison.row_file import RowFile
from retroflow.comparison.text_facts import TextFacts
from retroflow.evaluation.intervals import Interval, by_document, interval, resampled_losses
from retroflow.evaluation.modes import Mode
from retroflow.protocols import Int64Array

COLUMNS = {
    "nats": "nats per predicted token, each token once, the first of the text left out",
    "bits_per_byte": "nats / (ln 2 * UTF-8 bytes of the text)",
    "word_perplexity": "exp(nats / words of the text), words separated by white space",
    "gain": "nats per token below off, on the same tokens",
    "gain_interval": "95 % of 2,000 bootstrap resamples of documents, paired with off; null for a single document",
    "recovered": "gain / gain of in_context on the same tokens; null if that is not above 0",
    "recovered_interval": "likewise; null if in_context's gain is not above 0 in every resample",
    "seconds_per_token": "duration of the measurement / tokens predicted in it; with the lookups of oracle, of Ram et "
    "al. and of in_context_stride, without those of other rows, which were made before, and the keys of knn_lm: "
    "setup_seconds",
    "computation_per_token": "tokens that went through the model, its neighbour encoder included, / tokens predicted; "
    "with those of the keys of knn_lm and of its tuning",
    "memory": "largest number of bytes in use while the row was measured: resident memory of the whole process on a "
    "CPU, memory of tensors on a GPU; null where the system does not tell",
    "sequences": "that the row was measured on",
    "tokens": "predicted tokens behind nats",
}


@dataclass(frozen=True)
class Row:
    """The numbers of a row; `COLUMNS` defines them.

    Attributes:
        name: of the row.
        meaning: what is measured.
        neighbours: where the retrieved text comes from.
        setup_seconds: before the first token, over all starts.
        over_random: nats per token below "random" and its interval; None if that is no row.
        facts: other values of the row.
    """

    name: str
    meaning: str
    neighbours: str
    nats: float
    bits_per_byte: float
    word_perplexity: float | None
    gain: float | None
    gain_interval: Interval | None
    recovered: float | None
    recovered_interval: Interval | None
    seconds_per_token: float
    computation_per_token: float
    memory: int | None
    sequences: int
    tokens: int
    setup_seconds: float = 0.0
    over_random: float | None = None
    over_random_interval: Interval | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurements:
    """What was measured of the chosen rows, and of the text.

    Attributes:
        modes: by name, in the table's order.
        rows: by name.
        text: facts about the compared sequences.
        seed: of the bootstrap.
    """

    modes: Mapping[str, Mode]
    rows: Mapping[str, RowFile]
    text: TextFacts
    seed: int

    @property
    def scored(self) -> NDArray[np.bool_]:
        """Return bool [S, n], positions that predict a token."""
        return self.text.documents >= 0

    def places(self, name: str) -> Int64Array:
        """Return the places of a row's sequences among the compared ones, int64 [s], ascending."""
        return np.searchsorted(self.text.sequences, np.sort(self.rows[name].sequences))

    def by_chunk(self, name: str) -> tuple[NDArray[np.float64], Int64Array]:
        """Return the nats of each chunk's predicted tokens, float64 [S, l], and how many they are.

        The token that follows a sequence is left out.
        """
        shape, m = self.text.bytes.shape, self.text.chunk_length
        # position t predicts token t + 1
        nats = np.pad(self.nats(name)[:, :-1], ((0, 0), (1, 0))).reshape(*shape, m)
        scored = np.pad(self.scored[:, :-1], ((0, 0), (1, 0))).reshape(*shape, m)
        return nats.sum(-1), scored.sum(-1, dtype=np.int64)

    def nats(self, name: str) -> NDArray[np.float64]:
        """Return float64 [S, n], 0 in sequences that the row was not measured on."""
        row = self.rows[name]
        whole = np.zeros(self.text.documents.shape, dtype=np.float64)
        whole[np.searchsorted(self.text.sequences, row.sequences)] = row.token_nats
        return whole

    def interval_of(self, name: str) -> Interval | None:
        """Return the interval of a row's nats per token; None for a single document."""
        _, drawn = self._resampled([name])
        return None if drawn is None else interval(drawn[name])

    def table(self) -> list[Row]:
        """Return the rows with their numbers."""
        return [self._row(mode) for mode in self.modes.values()]

    def _row(self, mode: Mode) -> Row:
        row, places = self.rows[mode.name], self.places(mode.name)
        scored, words = self.scored[places], self.text.words[places]
        tokens, nats = int(scored.sum()), float(self.nats(mode.name)[places].sum())
        gains = {} if mode.name == "off" or "off" not in self.rows else self._gains(mode.name)
        return Row(
            name=mode.name,
            meaning=mode.meaning,
            neighbours=mode.neighbours,
            nats=nats / max(1, tokens),
            bits_per_byte=nats / (math.log(2.0) * max(1, int(self.text.bytes[places].sum()))),
            word_perplexity=None if (words < 0).any() else math.exp(min(700.0, nats / max(1, int(words.sum())))),
            gain=gains.get("gain"),
            gain_interval=gains.get("gain_interval"),
            recovered=gains.get("recovered"),
            recovered_interval=gains.get("recovered_interval"),
            over_random=gains.get("over_random"),
            over_random_interval=gains.get("over_random_interval"),
            seconds_per_token=row.seconds / max(1, tokens),
            computation_per_token=(row.setup_forwards + row.forwards) / max(1, tokens),
            memory=row.memory,
            sequences=len(places),
            tokens=tokens,
            setup_seconds=row.setup_seconds,
            facts=row.facts,
        )

    def difference(self, name: str, other: str) -> tuple[float, Interval | None]:
        """Return by how many nats per token a row is below another one, on the sequences of both, with its interval."""
        means, drawn = self._resampled([name, other])
        return means[other] - means[name], None if drawn is None else interval(drawn[other] - drawn[name])

    def _gains(self, name: str) -> dict[str, Any]:
        """Return gain, over_random and recovered of a row with their intervals, on the sequences of both rows."""
        found: dict[str, Any] = {}
        found["gain"], found["gain_interval"] = self.difference(name, "off")
        if "random" in self.rows and name != "random":
            found["over_random"], found["over_random_interval"] = self.difference(name, "random")
        if "in_context" in self.rows and name != "in_context":
            means, drawn = self._resampled([name, "off", "in_context"])
            whole = means["off"] - means["in_context"]
            if whole > 0:
                found["recovered"] = (means["off"] - means[name]) / whole
            if drawn and whole > 0:
                of = drawn["off"] - drawn["in_context"]
                found["recovered_interval"] = interval((drawn["off"] - drawn[name]) / of) if (of > 0).all() else None
        return found

    def _resampled(self, names: list[str]) -> tuple[dict[str, float], dict[str, NDArray[np.float64]] | None]:
        """Return nats per token of rows on the sequences of all of them, and those of resampled documents."""
        places = self.places(names[0])
        for name in names[1:]:
            places = np.intersect1d(places, self.places(name))
        scored = self.scored[places]
        documents = self.text.documents[places][scored]
        if not len(documents):
            return dict.fromkeys(names, 0.0), None
        nats = {name: by_document(self.nats(name)[places][scored], documents) for name in names}
        tokens = by_document(np.ones(len(documents)), documents)
        means = {name: float(of_row.sum() / tokens.sum()) for name, of_row in nats.items()}
        return means, resampled_losses(nats, tokens, seed=self.seed) if len(tokens) > 1 else None
