"""Two retrievers together: by meaning and by words. Their ranks are fused, or one ranks what the other has found.

Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009) adds 1 / (60 + rank) over both rankings. It needs no scale
that both scores would have in common.

Shapes: q queries, c candidates of one retriever, f candidates of both, k neighbours.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge

from retroflow.errors import UsageError
from retroflow.options import checked_options
from retroflow.protocols import Capabilities, Float32Array, Int64Array, KeySource, Neighbours, QueriedBy, Queries
from retroflow.retrieval.checked import CheckedRetriever

DENSE_FOLDER, WORDS_FOLDER = "dense", "words"
FUSION_CONSTANT = 60

_Value = str | int | float | bool | None
Part = dict[str, _Value | dict[str, _Value] | list[_Value]]
"""A retriever's section of a recipe, from which `retroflow.components.create_retriever` makes it."""


@checked_options("retriever.search")
@dataclass(frozen=True, kw_only=True)
class HybridSearch:
    """Options that change the ranking, never the index.

    Attributes:
        candidates: how many each retriever is asked for; at least k is used.
    """

    candidates: Annotated[int, Ge(1)] = 64


class HybridRetriever:
    """Search by meaning and by words, whose ranks are fused.

    Args:
        dense: the retriever by meaning, with its options.
        words: the retriever by words, with its options.
        search: options of the fusion.
    """

    def __init__(
        self,
        *,
        dense: CheckedRetriever | Part | None = None,
        words: CheckedRetriever | Part | None = None,
        search: HybridSearch | None = None,
    ) -> None:
        if not (isinstance(dense, CheckedRetriever) and isinstance(words, CheckedRetriever)):
            raise UsageError(
                "dense and words must be retrievers; retroflow.retriever(name, dense={...}) makes them of options."
            )
        self._dense, self._words = dense, words
        self._search = search or HybridSearch()
        reads = {each.capabilities.queried_by for each in (dense, words)}
        read: QueriedBy = reads.pop() if len(reads) == 1 else "both"
        both = (dense.capabilities, words.capabilities)
        self.capabilities = Capabilities(
            metric="own",
            queried_by=read,
            exact=False,  # a key that is below the candidates of both may have the better sum
            deterministic=all(each.deterministic for each in both),
            fork_safe=all(each.fork_safe for each in both),
            add=all(each.add for each in both),
            remove=all(each.remove for each in both),
            erases=all(each.erases for each in both),
            device=dense.capabilities.device,
        )

    @property
    def _parts(self) -> dict[str, CheckedRetriever]:
        return {DENSE_FOLDER: self._dense, WORDS_FOLDER: self._words}

    def check_vectors(self, count: int | None, dimension: int) -> None:
        """Refuse what one of them refuses."""
        for part in self._parts.values():
            if part.capabilities.reads_vectors:
                part.check_vectors(count, dimension)

    def build(self, keys: KeySource) -> None:
        """Build both over the same keys; each reads what it declares."""
        for part in self._parts.values():
            part.build(keys)

    def add(self, keys: KeySource) -> None:
        """Add keys to both; see `AddsKeys`."""
        for part in self._parts.values():
            part.add(keys)

    def remove(self, ids: Int64Array) -> None:
        """Remove keys from both; see `RemovesKeys`."""
        for part in self._parts.values():
            part.remove(ids)

    def search(self, queries: Queries, k: int) -> Neighbours:
        """Search with both, and fuse; equal sums are ordered by id."""
        depth = max(k, self._search.candidates)
        found = [part.search(queries, depth).ids for part in self._parts.values()]
        ids = np.concatenate(found, axis=1)  # [q, 2c]
        weights = np.tile(1.0 / (FUSION_CONSTANT + 1.0 + np.arange(depth)), 2)
        order = np.argsort(ids, axis=1, kind="stable")
        ids, sums = np.take_along_axis(ids, order, axis=1), weights[order]
        twice = ids[:, 1:] == ids[:, :-1]  # an id is at most once in each ranking
        sums[:, :-1] += np.where(twice, sums[:, 1:], 0.0)
        sums[:, 1:][twice] = -np.inf
        return best_of(ids, np.where(ids < 0, -np.inf, sums).astype(np.float32), k)

    def save(self, folder: Path) -> None:
        """Write each into a folder of its own."""
        for name, part in self._parts.items():
            part.save(folder / name)

    def load(self, folder: Path) -> None:
        """Load what `save` wrote."""
        for name, part in self._parts.items():
            part.load(folder / name)

    def fingerprint(self) -> dict[str, object]:
        """What both say."""
        return {name: part.fingerprint() for name, part in self._parts.items()}


class RerankRetriever(HybridRetriever):
    """Search by meaning, and order what was found by words.

    Args:
        dense: the retriever that finds candidates, with its options.
        words: the retriever that scores them, with its options.
        search: how many candidates there are.

    Raises:
        UsageError: the retriever by words is no `ScoresKeys`.
    """

    def __init__(
        self,
        *,
        dense: CheckedRetriever | Part | None = None,
        words: CheckedRetriever | Part | None = None,
        search: HybridSearch | None = None,
    ) -> None:
        super().__init__(dense=dense, words=words, search=search)
        if not self._words.can_score:
            raise UsageError(f"retriever.words: {self._words.owner} cannot score given keys; use bm25.")

    def search(self, queries: Queries, k: int) -> Neighbours:
        """Search with the first, and rank by the scores of the second; equal scores keep their order."""
        ids = self._dense.search(queries, max(k, self._search.candidates)).ids
        return best_of(ids, self._words.score(queries, ids), k)


def best_of(ids: Int64Array, scores: Float32Array, k: int) -> Neighbours:
    """Return the k best of ids and scores [q, f], equal scores in the order given; k is at most f."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return Neighbours(np.where(scores == -np.inf, -1, ids), scores)
