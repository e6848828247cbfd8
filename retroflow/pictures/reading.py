"""What a model makes of a sequence: the loss of every token with and without retrieval, and where it looked.

Shapes: n tokens of a sequence, m of a chunk, l chunks, W windows, k neighbours, r = 2m tokens of a neighbour.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.data import Batch
from retroflow.evaluation.measuring import token_losses
from retroflow.pictures.attention import Attention, Place, watched
from retroflow.pictures.token_classes import LEAST_RUN, classes_of, pieces, shared_runs
from retroflow.planning.placement import Placement
from retroflow.protocols import Float32Array, Int64Array
from retroflow.store.chunk_store import DocumentRecord

MOST_NEIGHBOURS = 8
"""Neighbours shown of a chunk: those with the most attention."""

MOST_WEIGHTS = 24
"""Neighbour tokens shown for a token: those with the most attention."""

LEAST_WEIGHT = 0.001
"""Smaller weights of attention are left out."""


@dataclass(frozen=True)
class Lookups:
    """What was found for a sequence.

    Attributes:
        ids: int64 [W, k], rows of the database, -1 = none.
        scores: float32 [W, k] of the retriever; None if they are not known.
        step: tokens between two lookups.
        document: returns the origin of a row of the database.
    """

    ids: Int64Array
    scores: Float32Array | None
    step: int
    document: Callable[[int], DocumentRecord]


@dataclass(frozen=True)
class Reading:
    """A sequence that was read.

    Attributes:
        batch: the sequence, alone.
        texts: of each token.
        classes: kind of each token.
        on: float32 [n], nats with retrieval of each token but the first, which has 0; so has padding.
        off: float32 [n], the same without retrieval.
        predicted: bool [n], where these are the losses of something.
        lookups: None without retrieval.
        attention: where it looked.
    """

    batch: Batch
    texts: list[str]
    classes: list[str]
    on: Float32Array
    off: Float32Array
    predicted: NDArray[np.bool_]
    lookups: Lookups | None
    attention: Attention

    @property
    def tokens(self) -> Int64Array:
        """int64 [n]."""
        return self.batch.tokens[0].numpy()

    def read_at(self, first: int, stop: int, m: int) -> list[Place]:
        """Return the neighbours that tokens first to stop (excluded) read, each once, the oldest first.

        Args:
            first: of the tokens.
            stop: of the tokens.
            m: tokens of a chunk.
        """
        places: dict[Place, None] = {}
        for position in range(max(first - 1, m - 1), stop - 1):
            assert self.lookups is not None
            window = (position + 1 - m) // self.lookups.step
            if window < len(self.lookups.ids):
                own = [(window, place) for place in range(self.lookups.ids.shape[1])]
                read = self.attention.read[window] if self.attention.read else own
                places |= dict.fromkeys(place for place in read if self.is_there(place))
        return list(places)

    def is_there(self, place: Place) -> bool:
        """Whether anything was retrieved there."""
        mask = self.batch.retrieved_mask
        return mask is not None and bool(mask[0, place[0], place[1]].any())

    def text_of(self, place: Place) -> Int64Array:
        """The tokens of a neighbour with its continuation, int64 [up to r]."""
        assert self.batch.retrieved is not None and self.batch.retrieved_mask is not None
        real = self.batch.retrieved_mask[0, place[0], place[1]]
        return self.batch.retrieved[0, place[0], place[1]][real].numpy()


def read(model: Any, placement: Placement, tokenizer: Tokenizer, batch: Batch, lookups: Lookups | None) -> Reading:
    """Run a sequence through a model, with retrieval and without.

    Args:
        model: a `RetrievalModel`, in evaluation mode on the placement's device.
        placement: device and precision.
        tokenizer: of the tokens.
        batch: one sequence with what was retrieved for it.
        lookups: what that is; None without retrieval.
    """
    tokens = batch.tokens[0].numpy()
    texts = pieces(tokenizer, tokens.tolist())
    step = batch.tokens.shape[1] if lookups is None else lookups.step
    off = _nats(model, placement, batch.without_retrieval(), None)
    with watched(model, batch, step) as attention:
        on = off if lookups is None else _nats(model, placement, batch, step)
    predicted = np.append(False, batch.targets[0, :-1].numpy() >= 0)
    return Reading(
        batch=batch,
        texts=texts,
        classes=classes_of(texts, tokens.tolist(), tokenizer.end_of_text),
        on=on,
        off=off,
        predicted=predicted,
        lookups=lookups,
        attention=attention,
    )


def _nats(model: Any, placement: Placement, batch: Batch, step: int | None) -> Float32Array:
    """Return float32 [n], the nats of each token, which the position before it predicts."""
    found = token_losses(model, placement, step)(batch)[0].float().cpu().numpy()
    return np.append(np.float32(0.0), found[:-1])


def copied(reading: Reading, m: int) -> NDArray[np.bool_]:
    """Return bool [n]: whether a token is in a run of `LEAST_RUN` tokens shared with a neighbour that it reads.

    Args:
        reading: of a sequence.
        m: tokens of a chunk.
    """
    tokens, found = reading.tokens, np.zeros(len(reading.tokens), dtype=bool)
    for first in range(m, len(tokens), m):
        start, stop = first - m, min(first + m, len(tokens))
        for place in reading.read_at(first, stop, m):
            for begin, _, length in shared_runs(tokens[start:stop], reading.text_of(place), least=LEAST_RUN):
                found[max(first, start + begin) : start + begin + length] = True
    return found


def entry(reading: Reading, chunk: int, m: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what the inspector shows of a chunk, as JSON values.

    Args:
        reading: of its sequence.
        chunk: its number in the sequence, from 0.
        m: tokens of a chunk.
        tokenizer: of the tokens.
    """
    first, stop = chunk * m, min((chunk + 1) * m, len(reading.tokens))
    shown = [position for position in range(first, stop) if reading.predicted[position] or position == 0]
    before = slice(max(0, first - m), first)
    places = reading.read_at(first, stop, m) if reading.lookups is not None else []
    weights = {position: _weights_of(reading, position - 1, m) for position in shown}
    mass = {place: sum(float(of[place].sum()) for of in weights.values() if place in of) for place in places}
    kept = sorted(places, key=lambda place: -mass[place])[:MOST_NEIGHBOURS]
    numbers = {place: number for number, place in enumerate(kept)}
    judged = [position for position in shown if reading.predicted[position]]
    on, off = (float(nats[judged].mean()) if judged else 0.0 for nats in (reading.on, reading.off))
    return {
        "chunk": chunk,
        "before": reading.texts[before],
        "tokens": [reading.texts[position] for position in shown],
        "classes": [reading.classes[position] for position in shown],
        "on": [_rounded(reading.on[position]) if reading.predicted[position] else None for position in shown],
        "off": [_rounded(reading.off[position]) if reading.predicted[position] else None for position in shown],
        "gain": off - on,
        "loss_on": on,
        "loss_off": off,
        "neighbours": [_neighbour(reading, place, (before.start, first, stop), tokenizer) for place in kept],
        "left_out": len(places) - len(kept),
        "attention": [_sparse(weights[position], numbers, reading) for position in shown],
    }


def _weights_of(reading: Reading, position: int, m: int) -> dict[Place, Float32Array]:
    """Return by neighbour the attention float32 [r] of a position."""
    found = reading.attention.weights.get(position)
    if found is None or reading.lookups is None:
        return {}
    window = (position + 1 - m) // reading.lookups.step
    return dict(zip(reading.attention.read[window], found, strict=True))


def _sparse(weights: dict[Place, Float32Array], numbers: dict[Place, int], reading: Reading) -> list[Any] | None:
    """Return the whole weight of neighbours, and [neighbour, token, weight] of the tokens with the most."""
    if not weights:
        return None
    found = []
    for place, of_place in weights.items():
        if place not in numbers:
            continue
        assert reading.batch.retrieved_mask is not None
        of_text = of_place[reading.batch.retrieved_mask[0, place[0], place[1]].numpy()]
        for token in np.flatnonzero(of_text >= LEAST_WEIGHT):
            found.append([numbers[place], int(token), _rounded(of_text[token])])
    found.sort(key=lambda one: -one[2])
    return [_rounded(sum(float(of.sum()) for of in weights.values())), found[:MOST_WEIGHTS]]


def _neighbour(reading: Reading, place: Place, bounds: tuple[int, int, int], tokenizer: Tokenizer) -> dict[str, Any]:
    """Describe a neighbour; runs are [token of the chunk and the one before, token of the neighbour, tokens]."""
    assert reading.lookups is not None and reading.batch.retrieved_mask is not None
    start, first, stop = bounds
    row = int(reading.lookups.ids[place])
    record, scores = reading.lookups.document(row), reading.lookups.scores
    mask = reading.batch.retrieved_mask[0, place[0], place[1]].numpy()
    tokens = reading.text_of(place)
    m = len(mask) // 2
    return {
        "document": record.id,
        "title": record.title,
        "source": record.source,
        "row": row,
        "rank": place[1],
        "score": None if scores is None or not np.isfinite(scores[place]) else float(scores[place]),
        "found_after": m + place[0] * reading.lookups.step - first,
        "tokens": pieces(tokenizer, tokens.tolist()),
        "continuation": int(mask[:m].sum()),
        "runs": shared_runs(reading.tokens[start:stop], tokens),
    }


def _rounded(value: Any) -> float:
    return round(float(value), 4)
