"""Intervals of losses by bootstrap over documents, paired: every mode is measured on the same resampled documents.

Tokens of one document are not independent of each other, so whole documents are drawn, with replacement.
Source: Efron & Tibshirani 1993, chapter 13 (percentile intervals).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from retroflow.protocols import Int64Array

RESAMPLES = 2000
"""Resamples of the documents; the ends of an interval then vary by about 2 % of its width between seeds."""

Interval = tuple[float, float]
"""Lower and upper end, at 2.5 % and 97.5 % of the resamples."""


def by_document(values: NDArray[np.generic], documents: Int64Array) -> NDArray[np.float64]:
    """Sum values [c] of chunks over their documents int64 [c]; returns float64 [D], documents ascending."""
    _, places = np.unique(documents, return_inverse=True)
    return np.bincount(places, weights=values).astype(np.float64)


def resampled_losses(
    nats: Mapping[str, NDArray[np.float64]], tokens: NDArray[np.float64], *, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Draw documents with replacement, as many as there are, `RESAMPLES` times.

    Args:
        nats: by mode, float64 [D], summed over each document.
        tokens: float64 [D], predicted tokens of each document.
        seed: of the draws.

    Returns:
        By mode, float64 [RESAMPLES], nats per token; an index stands for the same documents in every mode.
    """
    count = len(tokens)
    times = np.random.default_rng([seed, count]).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return {mode: (times @ of_mode) / (times @ tokens) for mode, of_mode in nats.items()}


def interval(values: NDArray[np.float64]) -> Interval:
    """Return the middle 95 % of resampled values."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
