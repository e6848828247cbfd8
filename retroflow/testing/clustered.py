"""Vectors that look like embeddings: clusters of very different sizes on the unit sphere."""

import numpy as np

from retroflow.protocols import Float32Array


def clustered_vectors(num_vectors: int, dimension: int, *, seed: int = 0, num_clusters: int = 50) -> Float32Array:
    """Draw unit vectors float32 [num_vectors, dimension] around centres whose sizes follow a power law.

    Uniform noise would be the wrong test: in it all neighbours are almost equally far, which no embedding is.
    """
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(num_clusters, dimension))
    weights = 1.0 / np.arange(1, num_clusters + 1)
    members = generator.choice(num_clusters, size=num_vectors, p=weights / weights.sum())
    vectors = centres[members] + 0.5 * generator.normal(size=(num_vectors, dimension))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Float32Array = vectors.astype(np.float32)
    return unit
