"""What the rules of EmbedderContract work with: texts, and embedders fitted to them.

Shapes: D embedding width.
"""

from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from retroflow.protocols import Embedder, Float32Array
from retroflow.testing.case import Case
from retroflow.testing.rule_process import RuleProcess

TEXTS = [
    "def forward(self, hidden_states, attention_mask):",
    "    hidden_states = self.norm(hidden_states)",
    "The retrieval database holds the chunks of every document.",
    "return residual + hidden_states",
    "a",
    "The retrieval database holds the embeddings of every chunk.",
    "for layer in self.layers: states = layer(states, mask)",
]
UNUSUAL_TEXTS = [
    "",
    "   \n\t  ",
    "\x00",
    "before\x00after",
    "gr\u00fc\u00dfe \u4f60\u597d \U0001f600 e\u0301",
    "\u202eright to left",
    "\ud800 a lone surrogate",
    "word" * 5000,
]
TOLERANCE = 2e-2


class Suite(Protocol):
    """What a subclass of EmbedderContract says."""

    seconds: ClassVar[float]

    def make_embedder(self) -> Embedder: ...
    def make_other_embedder(self) -> Embedder | None: ...


class EmbedderCase(Case):
    """One suite at work in one process.

    Args:
        suite: an instance of the author's subclass.
        folder: an empty folder for files.
        elsewhere: another process, with another PYTHONHASHSEED and another current folder.
    """

    def __init__(self, suite: Suite, folder: Path, elsewhere: RuleProcess | None = None) -> None:
        super().__init__(suite, folder, elsewhere)
        self.suite = suite

    @cached_property
    def embedder(self) -> Embedder:
        """An embedder fitted to TEXTS."""
        return self.fitted()

    def fitted(self) -> Embedder:
        """A new embedder, fitted to TEXTS, which are handed out once, as those of a corpus are."""
        embedder = self.suite.make_embedder()
        embedder.fit(iter(TEXTS))
        return embedder


def check_close(actual: Float32Array, expected: Float32Array, what: str) -> None:
    """Assert that rows agree but for rounding in bfloat16: within 2 % of a row's length, by L2."""
    assert actual.shape == expected.shape, f"{what}: shapes {actual.shape} and {expected.shape}"
    lengths = np.maximum(np.linalg.norm(expected, axis=1), 1e-6)
    worst = float((np.linalg.norm(actual - expected, axis=1) / lengths).max(initial=0.0))
    assert worst <= TOLERANCE, f"{what}: a row differs by {worst:.2g} of its length"
