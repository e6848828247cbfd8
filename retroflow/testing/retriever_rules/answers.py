"""What a search finds: the nearest, with their scores, as many as asked for."""

import numpy as np

from retroflow.protocols import Float32Array, Neighbours
from retroflow.testing.case import doing
from retroflow.testing.clustered import clustered_vectors
from retroflow.testing.retriever_rules.case import RetrieverCase
from retroflow.testing.retriever_rules.expected import LEAST_RESULTS, check_recall, check_scores
from retroflow.testing.retriever_rules.inputs import read_only

DEPTHS = (64, LEAST_RESULTS)
LENGTHS = (1 / 32, 512.0)  # of all vectors; powers of two, which round nothing


def finds_the_nearest_of_clustered_vectors(case: RetrieverCase) -> None:
    check_recall(case, case.query_vectors, case.vectors, case.built.search(case.queries, 10))


def finds_the_nearest_of_real_embeddings(case: RetrieverCase) -> None:
    case.skip_unless_by_vectors()
    embeddings = case.suite.embeddings()
    queries = embeddings[:: max(1, len(embeddings) // 500)]
    check_recall(case, queries, embeddings, case.build(embeddings).search(queries, 2))


def finds_the_nearest_where_lengths_differ(case: RetrieverCase) -> None:
    """Embeddings need not have length 1: then l2, inner product and cosine rank differently."""
    vectors, queries = _of_other_lengths(case.vectors, 1), _of_other_lengths(case.queries, 2)
    vectors = np.concatenate([vectors, np.zeros_like(vectors[:1])])  # a zero vector is one, too
    answer = case.build(vectors).search(queries, 10)
    check_scores(case, queries, vectors, answer)
    check_recall(case, queries, vectors, answer)


def scores_are_what_the_metric_says(case: RetrieverCase) -> None:
    check_scores(case, case.query_vectors, case.vectors, case.built.search(case.queries, 5))


def a_stored_key_finds_itself_first(case: RetrieverCase) -> None:
    first = case.built.search(case.keys, 1).ids[:, 0]
    share = float(np.mean(first == np.arange(len(case.keys))))
    # By a measure of its own another key may be better, such as a shorter text with the same words.
    floor = 1.0 if case.built.capabilities.exact and case.metric != "own" else case.suite.recall_floor
    assert share >= floor, f"only {share:.3f} find themselves; is row i given id i?"


def equal_vectors_are_different_neighbours(case: RetrieverCase) -> None:
    case.skip_unless_by_vectors()
    vectors = np.repeat(clustered_vectors(300, case.suite.dimension), 4, axis=0)
    ids, _ = case.build(vectors).search(vectors[::40], 4)
    found = np.mean(np.sort(ids, axis=1) == (np.arange(0, len(vectors), 40)[:, None] // 4 * 4 + np.arange(4)))
    assert found >= case.suite.recall_floor, f"only {found:.2f} of four equal vectors are found by their twin"
    ids, _ = case.build(np.repeat(vectors[:1], 300, axis=0)).search(vectors[:1], DEPTHS[0])
    found = int((ids >= 0).sum())
    assert found == DEPTHS[0], f"asked for {DEPTHS[0]} of 300 equal vectors, it found {found}"


def a_zero_query_has_an_answer(case: RetrieverCase) -> None:
    """Empty text may be embedded as zeros; cosine divides by its length."""
    case.skip_unless_by_vectors()
    queries = np.zeros((2, case.suite.dimension), np.float32)
    answer = case.built.search(queries, 5)
    assert (answer.ids >= 0).all(), "a query of zeros finds fewer than 5 vectors; it is a point like any other"
    check_scores(case, queries, case.vectors, answer)


def a_query_far_from_all_vectors_has_an_answer(case: RetrieverCase) -> None:
    """Text unlike the corpus has neighbours, too: a radius, empty cells or a least score of 0 would lose them."""
    queries = read_only(np.concatenate([-case.query_vectors[:20], -30 * case.query_vectors[:20]]))
    answer = case.built.search(queries, 5)
    assert (answer.ids >= 0).all(), "for queries far from all vectors it finds fewer than 5; find k wherever k exist"
    check_scores(case, queries, case.vectors, answer)
    if case.built.capabilities.exact:
        check_recall(case, queries, case.vectors, answer)


def long_and_short_vectors_are_as_good(case: RetrieverCase) -> None:
    """Embeddings of any length are legal: no fixed range, no scores of a few decimals."""
    for length in LENGTHS:
        vectors, queries = read_only(case.vectors[:500] * length), read_only(case.queries[:20] * length)
        ids, scores = case.build(vectors).search(queries, 3)
        assert (ids[:, 0] >= 0).all(), f"of vectors of length {length:g} some queries find nothing"
        in_units = Neighbours(ids, scores / np.float32(length) ** 2)
        with doing(f"vectors of length {length:g}; scores in units of its square"):
            check_scores(case, case.queries[:20], case.vectors[:500], in_units)


def finds_as_many_as_asked_for(case: RetrieverCase) -> None:
    """Retroflow asks for more than it keeps, since neighbours of the query's own document do not count."""
    count = len(case.vectors)
    for k in (*DEPTHS, count // 2, count):
        ids, _ = answer = case.built.search(case.queries[:20], k)
        least = k if case.built.capabilities.exact else min(k, max(DEPTHS))
        fewest = int((ids >= 0).sum(axis=1).min())
        assert fewest >= least, f"asked for {k} of {count} vectors, it found {fewest}; at least {least} are needed"
        check_scores(case, case.queries[:20], case.vectors, answer)
        if k in DEPTHS[:1] or case.built.capabilities.exact:
            check_recall(case, case.queries[:20], case.vectors, answer)


def pads_with_minus_one_above_the_number_of_keys(case: RetrieverCase) -> None:
    count = len(case.keys)
    ids, _ = case.built.search(case.queries[:3], count + 100)
    assert ids.shape == (3, count + 100) and (ids[:, count:] == -1).all()


def pads_with_minus_one_where_few_exist(case: RetrieverCase) -> None:
    case.skip_unless_by_vectors()
    for count in (1, 2, 5):
        vectors = clustered_vectors(count, case.suite.dimension)
        ids, _ = case.build_or_skip(vectors).search(vectors, 9)
        # CheckedRetriever has checked order, -inf and range; a padding id of 0 would be a duplicate or a false hit.
        assert (ids[:, count:] == -1).all(), f"only {count} vectors exist, so at most {count} ids per row"
        assert (ids[:, 0] == np.arange(count)).all(), f"each of {count} vectors must find itself"
        assert (ids[:, :count] >= 0).all(), f"of {count} vectors, all must be found where {count} or more are asked for"


def fewer_results_are_the_beginning_of_more(case: RetrieverCase) -> None:
    few, many = case.built.search(case.queries, 1).scores, case.built.search(case.queries, 10).scores[:, :1]
    assert (few <= many + 1e-5).all(), "asking for more neighbours must not lose the best"


def _of_other_lengths(vectors: Float32Array, seed: int) -> Float32Array:
    lengths = np.exp(np.random.default_rng(seed).uniform(-0.7, 0.7, size=(len(vectors), 1)))
    return read_only((vectors * lengths).astype(np.float32))
