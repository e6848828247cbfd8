"""Where the gain is: losses by the kind of token, by whether it could be copied, and by its position in the chunk.

Shapes: n tokens of a text, j tokens of retrieved text, m tokens of a chunk.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.generation.text_stream import TextStream
from retroflow.protocols import Int64Array

CLASSES = {
    "word start": "letters after something that is no letter",
    "word continuation": "letters that continue a word",
    "number": "digits without letters",
    "punctuation": "neither letters nor digits",
    "whitespace": "spaces and line ends only",
    "end of document": "the token between two documents",
}
"""Kinds of tokens, and what they are."""

COPIED = {
    "shared": "in a run of tokens shared with a neighbour that is read",
    "not shared": "in no such run",
}
"""Whether a token can be copied, and what that means."""

LEAST_RUN = 4
"""Tokens in a row that count as shared: fewer are common by chance."""

POSITIONS = 8
"""Parts of a chunk in the breakdown by position."""


def pieces(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """Return the text of each token; a character of several tokens belongs to the last of them."""
    stream = TextStream(tokenizer)
    texts = [stream.push(int(token)) for token in tokens]
    if texts:
        texts[-1] += stream.finish()
    return texts


def classes_of(texts: Sequence[str], tokens: Sequence[int], end_of_text: int, *, before: str = "") -> list[str]:
    """Return the kind of each token, one of `CLASSES`.

    Args:
        texts: of the tokens.
        tokens: their numbers.
        end_of_text: the number of the token between documents.
        before: the text before the first one.
    """
    found = []
    for text, token in zip(texts, tokens, strict=True):
        found.append("end of document" if token == end_of_text else _class_of(text, before))
        before = text or before
    return found


def _class_of(text: str, before: str) -> str:
    inner = text.strip()
    if not inner:
        return "whitespace" if text else "word continuation"  # bytes of a character that is not complete yet
    if any(letter.isalpha() for letter in inner):
        return "word continuation" if text[0].isalpha() and before[-1:].isalpha() else "word start"
    return "number" if any(letter.isdigit() for letter in inner) else "punctuation"


def shared_runs(text: Int64Array, retrieved: Int64Array, *, least: int = LEAST_RUN) -> list[tuple[int, int, int]]:
    """Find the longest runs of tokens that two texts have in common.

    Args:
        text: int64 [n].
        retrieved: int64 [j].
        least: tokens of a run.

    Returns:
        Start in `text`, start in `retrieved`, and tokens of each run that no longer one contains.
    """
    lengths = np.zeros((len(text) + 1, len(retrieved) + 1), dtype=np.int64)
    same = text[:, None] == retrieved
    for row in range(len(text)):
        lengths[row + 1, 1:] = np.where(same[row], lengths[row, :-1] + 1, 0)
    ends = lengths[1:, 1:] >= least
    ends[:-1, :-1] &= ~same[1:, 1:]
    runs = []
    for row, column in zip(*ends.nonzero(), strict=True):
        length = int(lengths[row + 1, column + 1])
        runs.append((int(row) + 1 - length, int(column) + 1 - length, length))
    return runs


@dataclass
class Breakdown:
    """Sums of losses by name.

    Attributes:
        sums: kind of breakdown -> name -> tokens, nats with retrieval and nats without.
    """

    sums: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)

    def add(self, kind: str, names: Iterable[str], on: NDArray[np.float32], off: NDArray[np.float32]) -> None:
        """Add tokens with their names, and their nats float32 [n]."""
        groups = self.sums.setdefault(kind, {})
        for name, with_it, without in zip(names, on, off, strict=True):
            groups.setdefault(name, np.zeros(3))[:] += (1.0, with_it, without)

    def to_json(self, kind: str, meanings: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return nats per token, gains, and the share of the whole gain, of names with a meaning that occur."""
        groups = self.sums.get(kind, {})
        whole = sum(float(sums[2] - sums[1]) for sums in groups.values())
        rows = []
        for name, meaning in meanings.items():
            if name in groups:
                tokens, on, off = map(float, groups[name])
                share = (off - on) / whole if whole else None
                values = {"on": on / tokens, "off": off / tokens, "gain": (off - on) / tokens, "share_of_gain": share}
                rows.append({"name": name, "meaning": meaning, "tokens": int(tokens), **values})
        return rows


def position_names(chunk_length: int) -> list[str]:
    """Return the name of each position of a chunk, such as "1-8", by its part of the chunk."""
    width = -(-chunk_length // POSITIONS)
    firsts = [position - position % width for position in range(chunk_length)]
    return [f"{first + 1}-{min(first + width, chunk_length)}" for first in firsts]
