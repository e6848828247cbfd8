"""What a model is given to read, and how it is then measured: every mode of a comparison, declared once.

A new mode is one entry here and one function of its name in `retroflow/comparison/rows.py`.
"""

from dataclasses import dataclass
from typing import Literal

Need = Literal["neighbours", "states", "search"]
"""What a mode needs: a model that reads neighbours; one that gives its last states; a database that can be searched."""


@dataclass(frozen=True)
class Mode:
    """One row of a comparison.

    Attributes:
        name: of the row.
        meaning: what is measured.
        neighbours: where the retrieved text comes from.
        needs: what the model must have.
        passes: about how many times as long it takes as a pass without retrieval; for the time left.
        most_sequences: a sample of so many is measured by default; None for all that are compared.
        is_default: whether it is measured if no rows are chosen.
        definition: to be raised when the same model would get other numbers.
    """

    name: str
    meaning: str
    neighbours: str
    needs: tuple[Need, ...] = ("neighbours",)
    passes: int = 6
    most_sequences: int | None = None
    is_default: bool = True
    definition: int = 1


_IN_PROMPT: tuple[Need, ...] = ("neighbours", "states")

_DECLARED = (
    Mode("off", "the same weights without retrieval", "none", needs=(), passes=1),
    Mode("on", "the model reads neighbours", "as found"),
    Mode("shuffled", "the model reads", "those found for another chunk"),
    Mode("random", "the model reads", "random chunks of the database", definition=2),
    Mode("topic_matched", "the model reads", "those found for another document of the same topic", definition=2),
    Mode("neighbour_only", "the model reads", "as found, without their continuations", passes=4),
    Mode("continuation_only", "the model reads", "only the continuations of those found", passes=4),
    Mode(
        "oracle",
        "the model reads",
        "of 16 found those with the lowest loss, or as found where that is lower: a bound, not a way to retrieve",
        passes=70,
        most_sequences=16,
        is_default=False,
        needs=("neighbours", "search"),
    ),
    Mode(
        "in_context_first",
        "no retrieval, but text in the prompt, computed anew for each chunk",
        "the best one with its continuation, before the text",
        passes=7,
        needs=_IN_PROMPT,
    ),
    Mode(
        "in_context",
        "no retrieval, but text in the prompt, computed anew for each chunk",
        "all with their continuations, the best first, before the text",
        passes=9,
        needs=_IN_PROMPT,
    ),
    Mode(
        "in_context_ram",
        "no retrieval, but text in the prompt, after Ram et al. 2023, computed anew every 4 tokens",
        "the best one found with the last 32 tokens, over the start of the window",
        passes=110,
        most_sequences=8,
        is_default=False,
        needs=("states", "search"),
    ),
    Mode(
        "in_context_ram_reranked",
        "the same, with zero-shot re-ranking",
        "of 16 found so that one under which the last 16 tokens before are likeliest",
        passes=1700,
        most_sequences=2,
        is_default=False,
        needs=("states", "search"),
    ),
    Mode(
        "knn_lm",
        "no retrieval, but mixed with the tokens that followed the most similar states in the database",
        "1,024 tokens of the database for each token",
        passes=2,
        needs=("states",),
        definition=2,
    ),
)

MODES: dict[str, Mode] = {mode.name: mode for mode in _DECLARED}
"""By name, in the order of the table."""
