"""What RetrieverContract compares an answer with: true scores, and other answers up to rounding.

Shapes: q queries, N vectors, D embedding width.
"""

from typing import Any

import numpy as np

from retroflow.protocols import Float32Array, Neighbours


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
    return 2.0 * products - np.square(vectors.astype(np.float64)).sum(axis=1)


def joined(answers: list[Neighbours]) -> Neighbours:
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
