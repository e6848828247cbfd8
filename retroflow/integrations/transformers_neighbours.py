"""Which neighbours the tokens of a call read: those that the caller gives, or those that a database finds.

Shapes: b batch, n tokens of a sequence, m tokens of a chunk, W windows, k neighbours, r = 2m tokens of a neighbour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from retroflow.errors import InvalidShapeError, UsageError
from retroflow.generation.retrieved import LiveRetriever, Source, retrieve
from retroflow.model.neighbours import Retrieved


class LookedUp(NamedTuple):
    """One lookup of one row.

    Attributes:
        end: tokens of the row up to the end of the window, padding counted; the last is the first to read the sources.
        sources: the neighbours, best first.
    """

    end: int
    sources: tuple[Source, ...]


class Found(NamedTuple):
    """What was found for windows.

    Attributes:
        neighbours: of W windows.
        lookups: for each row of the batch its lookups, in order; empty where the caller gave the neighbours.
    """

    neighbours: Retrieved
    lookups: Sequence[Sequence[LookedUp]]


class FindNeighbours(Protocol):
    """Finds the neighbours of windows."""

    def __call__(self, tokens: Tensor, padding: Tensor | None, ends: Sequence[int]) -> Found | None:
        """Find neighbours.

        Args:
            tokens: int64 [b, n], all tokens so far.
            padding: int64 [b], tokens at the left of each row that are padding; None for none.
            ends: of W windows, at least one: how many tokens of the padded row come before its end.

        Returns:
            The neighbours of these windows; None if there are none.
        """
        ...


@dataclass(frozen=True)
class GivenNeighbours:
    """Neighbours that the caller looked up.

    Attributes:
        neighbours: int64 [b, W, k, r], of all the windows that the tokens of the call close.
        mask: bool [b, W, k, r] or [b, W, k], True where a token was retrieved; None for all.
    """

    neighbours: Tensor
    mask: Tensor | None

    def __call__(self, tokens: Tensor, padding: Tensor | None, ends: Sequence[int]) -> Found:
        """Return what was given; see `FindNeighbours`."""
        if self.neighbours.ndim != 4 or self.neighbours.shape[:2] != (len(tokens), len(ends)):
            raise InvalidShapeError(
                f"neighbours: {list(self.neighbours.shape)} given; [{len(tokens)}, {len(ends)}, k, r] is needed (rows, "
                "windows that end within these tokens, neighbours, tokens of a neighbour with its continuation)."
            )
        mask = torch.ones_like(self.neighbours, dtype=torch.bool) if self.mask is None else self.mask
        if mask.ndim == 3:
            mask = mask[..., None].expand_as(self.neighbours)
        return Found(Retrieved(self.neighbours, mask), [[] for _ in tokens])


@dataclass(frozen=True)
class LiveNeighbours:
    """Neighbours that a database finds.

    Attributes:
        database: is searched once for all windows of a call; equal windows are searched once.
        chunk_length: m.
        num_neighbours: k.
    """

    database: LiveRetriever
    chunk_length: int
    num_neighbours: int

    def __call__(self, tokens: Tensor, padding: Tensor | None, ends: Sequence[int]) -> Found | None:
        """Look up windows; a window that is padding alone finds nothing. See `FindNeighbours`."""
        rows = tokens.tolist()
        paddings = [0] * len(rows) if padding is None else padding.tolist()
        places = {
            (row, window): tuple(rows[row][max(paddings[row], end - self.chunk_length) : end])
            for row in range(len(rows))
            for window, end in enumerate(ends)
            if paddings[row] < end
        }
        queries = {query: number for number, query in enumerate(dict.fromkeys(places.values()))}
        if not queries:
            return None
        found = retrieve(self.database, list(queries), self.num_neighbours, 2 * self.chunk_length)
        shape = (len(rows), len(ends), *found.tokens.shape[1:])
        neighbours, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
        lookups: list[list[LookedUp]] = [[] for _ in rows]
        for (row, window), query in places.items():
            number = queries[query]
            mask[row, window] = torch.from_numpy(found.mask[number])
            neighbours[row, window] = torch.from_numpy(found.tokens[number])
            lookups[row].append(LookedUp(ends[window], tuple(found.sources[number])))
        return Found(Retrieved(neighbours.to(tokens.device), mask.to(tokens.device)), lookups)


def joined(before: Retrieved | None, after: Retrieved | None, count_before: int, count_after: int) -> Retrieved | None:
    """Put the neighbours of windows before those of later ones; nothing is read where there are none.

    Args:
        before: of the first windows; None for none.
        after: of the later ones; None for none.
        count_before: windows of `before`.
        count_after: windows of `after`.

    Returns:
        Neighbours of all windows, with a mask; None if there are none at all.

    Raises:
        UsageError: the two have different numbers of neighbours.
    """
    like = before or after
    if like is None:
        return None
    parts = [_filled(part, count, like) for part, count in ((before, count_before), (after, count_after))]
    (tokens, more), (mask, more_mask) = zip(*((part.tokens, part.mask) for part in parts), strict=True)
    if tokens.shape[2:] != more.shape[2:]:
        raise UsageError(
            f"neighbours: {more.shape[2]} for a window given after {tokens.shape[2]}; give as many in every call."
        )
    assert mask is not None and more_mask is not None
    return Retrieved(torch.cat((tokens, more), dim=1), torch.cat((mask, more_mask), dim=1))


def _filled(found: Retrieved | None, count: int, like: Retrieved) -> Retrieved:
    if found is not None:
        return found
    shape = (like.tokens.shape[0], count, *like.tokens.shape[2:])
    return Retrieved(like.tokens.new_zeros(shape), like.tokens.new_zeros(shape, dtype=torch.bool))
