"""How many at once, how wide, how large: as much as retroflow asks for, and the edges of it.

`prepare` searches 4,096 queries at a time and more; an index holds as many vectors as the corpus has chunks.
"""

import numpy as np

from retroflow.protocols import Float32Array, Neighbours
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.testing.retriever_rules.case import RetrieverCase
from retroflow.testing.retriever_rules.expected import LEAST_RESULTS, check_equal, check_scores, joined
from retroflow.testing.retriever_rules.inputs import LARGEST_SLICE, SliceOnly

WIDTHS = (1, 7, 50, 768)
MANY_VECTORS, NARROW = 70_000, 8  # more than 65,536 of them, which is what 16 bits number
MANY_QUERIES, FEW_QUERIES = 5_000, 50
MOST_RESULTS = 4_096  # that `prepare` asks for, where a query's own document has many of its nearest
PLACES = 16  # looked at around each multiple of PLACE_ROWS, where blocks end
PLACE_ROWS = 4_096


def a_batch_answers_as_its_rows_do_one_by_one(case: RetrieverCase) -> None:
    together = case.built.search(case.queries, 5)
    alone = [case.built.search(case.queries[row : row + 1], 5) for row in range(len(case.queries))]
    check_equal(together, joined(alone), "the same query alone and in a batch")


def answers_5000_queries_as_50_at_a_time(case: RetrieverCase) -> None:
    different = case.make_keys(len(case.keys) + 500, seed=1)[len(case.keys) :]
    parts = [case.built.search(different[at : at + FEW_QUERIES], 5) for at in range(0, len(different), FEW_QUERIES)]
    expected = joined(parts)
    rows = np.random.default_rng(0).integers(len(different), size=MANY_QUERIES)
    together = case.built.search(different[rows], 5)
    same = Neighbours(expected.ids[rows], expected.scores[rows])
    check_equal(together, same, f"{MANY_QUERIES} queries in one search and {FEW_QUERIES} at a time")


def finds_the_first_and_the_last_of_70000_vectors(case: RetrieverCase) -> None:
    """Read in blocks of at most 65,536 rows, from float16, as an embedding store hands them out."""
    case.skip_unless_by_vectors()
    vectors = np.random.default_rng(0).normal(size=(MANY_VECTORS, NARROW))
    if case.metric == "inner_product":  # or the longest vectors are nearest to everything
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    stored = vectors.astype(np.float16)
    retriever = case.build(SliceOnly(stored, most_rows=LARGEST_SLICE))
    middles = range(0, MANY_VECTORS + PLACE_ROWS, PLACE_ROWS)
    for middle in (*middles, 2**16, MANY_VECTORS):
        rows = np.arange(max(0, middle - PLACES), min(MANY_VECTORS, middle + PLACES))
        first = retriever.search(stored[rows].astype(np.float32), 1).ids[:, 0] if len(rows) else rows
        found = int((first == rows).sum())
        least = len(rows) if retriever.capabilities.exact else case.suite.recall_floor * len(rows) - 2
        assert found >= least, (
            f"of rows {rows[0]} to {rows[-1]} of {MANY_VECTORS} only {found} of {len(rows)} find themselves; is every "
            "block of vectors read, to its end, and is an id wide enough for any row?"
        )
    _check_deep_search(retriever, stored[:3].astype(np.float32))


def _check_deep_search(retriever: CheckedRetriever, queries: Float32Array) -> None:
    ids, _ = retriever.search(queries, MOST_RESULTS)
    fewest = int((ids >= 0).sum(axis=1).min())
    assert fewest >= LEAST_RESULTS, (
        f"asked for {MOST_RESULTS} of {MANY_VECTORS} vectors, it found {fewest}; at least {LEAST_RESULTS} are needed"
    )


def takes_vectors_of_any_width(case: RetrieverCase) -> None:
    case.skip_unless_by_vectors()
    for width in WIDTHS:
        vectors = np.random.default_rng(width).normal(size=(300, width)).astype(np.float32)
        retriever = case.build(vectors)
        answer = retriever.search(vectors, 2)
        check_scores(case, vectors, vectors, answer)
        if case.metric == "l2":
            own = float(np.mean(answer.ids[:, 0] == np.arange(len(vectors))))
            assert own >= case.suite.recall_floor, f"of vectors {width} wide only {own:.2f} find themselves"


def builds_from_a_source_that_can_only_be_sliced(case: RetrieverCase) -> None:
    sliced = case.build(SliceOnly(case.vectors)).search(case.query_vectors, 3)
    assert (sliced.ids[:, 0] >= 0).all(), "build() must read source[start:stop] over the whole source"
    if case.built.capabilities.deterministic:
        check_equal(sliced, case.built.search(case.queries, 3), "built from a sliced source and from an array")


def an_empty_index_answers_with_padding_and_can_be_saved(case: RetrieverCase) -> None:
    empty = case.build(case.keys[:0])
    folder = case.scratch() / "index"
    empty.save(folder)
    ids, scores = case.opened(folder).search(case.queries[:2], 3)
    assert (ids == -1).all() and (scores == -np.inf).all() and ids.shape == (2, 3)


def no_queries_give_no_rows(case: RetrieverCase) -> None:
    ids, scores = case.built.search(case.queries[:0], 4)
    assert ids.shape == scores.shape == (0, 4)
