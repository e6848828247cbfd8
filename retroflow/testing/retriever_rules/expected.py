"""What RetrieverContract compares an answer with: true scores, and other answers up to rounding.

No rule asks for an order among equal scores: any of the equals may stand at the k-th place.

Shapes: q queries, N vectors, D embedding width, k neighbours.
"""

from typing import Any

import numpy as np

from retroflow.protocols import Float32Array, Neighbours
from retroflow.testing.retriever_rules.case import RetrieverCase

LEAST_RESULTS = 256  # that any retriever finds where as many exist; beyond it, an approximate one may give up
DEEP, DEEP_SHARE = 10, 0.85  # above k = 10 an approximate index may miss more: this share of recall_floor
TIE = 1e-5  # scores nearer than this, relative to their size, are equal


def true_scores(metric: str, queries: Float32Array, vectors: Float32Array) -> Any:
    """Return the true score of each pair of rows of queries [n, D] and vectors [n, D]."""
    if metric == "l2":
        return -np.square(queries.astype(np.float64) - vectors).sum(axis=1)
    return (queries.astype(np.float64) * vectors).sum(axis=1)


def all_true_scores(metric: str, queries: Float32Array, vectors: Float32Array) -> Any:
    """Return the true scores [q, N], in float64."""
    products = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    if metric == "inner_product":
        return products
    lengths = np.square(vectors.astype(np.float64)).sum(axis=1)
    return 2.0 * products - lengths - np.square(queries.astype(np.float64)).sum(axis=1)[:, None]


def recall(metric: str, queries: Float32Array, vectors: Float32Array, answer: Neighbours) -> float:
    """Return the share of the true k nearest that an answer [q, k] holds, by true score: an equal copy is as good."""
    k = min(answer.ids.shape[1], len(vectors))
    scores = all_true_scores(metric, queries, vectors)
    worst = np.sort(scores, axis=1)[:, -k][:, None]
    reached = np.take_along_axis(scores, np.maximum(answer.ids, 0), axis=1) >= worst - TIE * np.maximum(1, abs(worst))
    return float((reached & (answer.ids >= 0)).sum() / (len(queries) * k))


def check_recall(case: RetrieverCase, queries: Float32Array, vectors: Float32Array, answer: Neighbours) -> None:
    """Assert that an answer has the recall that the suite asks for, or all of it where `exact` is declared."""
    found = recall(case.metric, queries, vectors, answer)
    deep = answer.ids.shape[1] > DEEP
    floor = 1.0 if case.new().capabilities.exact else case.suite.recall_floor * (DEEP_SHARE if deep else 1.0)
    assert found >= floor, f"recall@{answer.ids.shape[1]} is {found:.3f}, below {floor:.3g}" + (
        " (capabilities.exact promises all)" if floor == 1.0 else "; raise the search effort of the defaults"
    )


def check_scores(case: RetrieverCase, queries: Float32Array, vectors: Float32Array, answer: Neighbours) -> None:
    """Assert that the scores of an answer are those that the metric gives its ids."""
    valid = answer.ids >= 0
    assert valid.any(), "no id is valid"
    left, right = queries[np.nonzero(valid)[0]], vectors[answer.ids[valid]]
    expected = true_scores(case.metric, left, right)
    # What is rounded is the squares of the lengths, whose difference may be small.
    scale = np.maximum(1.0, (np.square(left).sum(axis=1) + np.square(right).sum(axis=1)) / 2)
    worst = float((np.abs(answer.scores[valid] - expected) / scale).max())
    assert worst <= case.suite.score_tolerance, (
        f"a score is {worst:.2g} away from the true one; l2 is minus the SQUARED distance, inner_product the dot "
        "product itself, whatever the vectors' lengths (raise score_tolerance if the index stores vectors lossily)"
    )
    if case.metric == "l2":
        assert answer.scores[valid].max() <= 0.0, "minus a squared distance is never positive: clip rounding at 0"


def joined(answers: list[Neighbours]) -> Neighbours:
    """Return the answers below each other."""
    return Neighbours(
        np.concatenate([each.ids for each in answers]),
        np.concatenate([each.scores for each in answers]),
    )


def check_equal(left: Neighbours, right: Neighbours, what: str) -> None:
    """Equal up to rounding: scores close, ids equal except among scores that rounding may have swapped."""
    assert left.ids.shape == right.ids.shape, f"{what}: shapes {left.ids.shape} and {right.ids.shape}"
    assert np.allclose(left.scores, right.scores, rtol=1e-4, atol=1e-5), f"{what}: the scores differ"
    different = float(np.mean(left.ids != right.ids))
    assert different <= 0.02, f"{what}: {different:.0%} of the ids differ although the scores agree"


def check_identical(left: Neighbours, right: Neighbours, what: str) -> None:
    """Equal to the last bit."""
    assert np.array_equal(left.ids, right.ids) and np.array_equal(left.scores, right.scores), what
