"""The sizes that rows of a comparison have, as words `rows.KEY=VALUE`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from annotated_types import Ge

from retroflow.evaluation.knn_lm import MOST_TOKENS, NEIGHBOURS
from retroflow.evaluation.oracle import CANDIDATES
from retroflow.evaluation.prompted import (
    RAM_CANDIDATES,
    RAM_PASSAGE_TOKENS,
    RAM_QUERY_TOKENS,
    RAM_RANK_TOKENS,
    RAM_STEP,
)
from retroflow.options import bind, checked_options
from retroflow.recipe.yaml_text import parse_scalar

PREFIX = "rows."

_BEGINNINGS = {
    "in_context": "in_context_",
    "in_context_first": "in_context_",
    "in_context_ram": "ram_",
    "in_context_ram_reranked": "ram_",
    "oracle": "oracle_",
    "knn_lm": "knn_",
}
"""By row, how the names of its options begin."""


@checked_options("rows")
@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """Options of rows; the beginning of a name says of which.

    Attributes:
        in_context_stride: tokens between two lookups for a prompt; null for a chunk's.
        ram_window: tokens of a window, the last of which is only predicted; null for a sequence.
        ram_stride: tokens between two lookups.
        ram_query: tokens of a query; Ram et al. use 32 for BM25 and 64 for dense retrievers.
        ram_passage: most tokens of a passage.
        ram_candidates: passages that are re-ranked.
        ram_rank: tokens before the predicted ones that re-rank them.
        oracle_candidates: neighbours of which the best are taken.
        knn_k: nearest keys of a token.
        knn_tokens: most keys.
    """

    in_context_stride: Annotated[int, Ge(1)] | None = None
    ram_window: Annotated[int, Ge(2)] | None = None
    ram_stride: Annotated[int, Ge(1)] = RAM_STEP
    ram_query: Annotated[int, Ge(1)] = RAM_QUERY_TOKENS
    ram_passage: Annotated[int, Ge(1)] = RAM_PASSAGE_TOKENS
    ram_candidates: Annotated[int, Ge(1)] = RAM_CANDIDATES
    ram_rank: Annotated[int, Ge(1)] = RAM_RANK_TOKENS
    oracle_candidates: Annotated[int, Ge(1)] = CANDIDATES
    knn_k: Annotated[int, Ge(1)] = NEIGHBOURS
    knn_tokens: Annotated[int, Ge(1)] = MOST_TOKENS

    def of(self, row: str) -> dict[str, Any]:
        """Return the options of a row that are not null, JSON values."""
        begin, given = _BEGINNINGS.get(row), asdict(self).items()
        return {name: value for name, value in given if begin and name.startswith(begin) and value is not None}


def split_options(words: Sequence[str]) -> tuple[RowOptions, list[str]]:
    """Take the words `rows.KEY=VALUE` out of overrides.

    Raises:
        UsageError: there is no such option, or it cannot have this value.
    """
    own = [word.removeprefix(PREFIX).partition("=") for word in words if word.startswith(PREFIX)]
    given = {key: parse_scalar(value) for key, _, value in own}
    return bind(RowOptions, given, where="rows", owner="rows"), [word for word in words if not word.startswith(PREFIX)]
