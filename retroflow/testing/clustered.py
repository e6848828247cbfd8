"""Vectors that look like embeddings, and texts with topics: clusters of very different sizes."""

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


def clustered_texts(num_texts: int, *, seed: int = 0, num_topics: int = 50, num_words: int = 40) -> list[str]:
    """Draw texts whose words are half of a topic's own and half of all texts', each kind by a power law."""
    generator = np.random.default_rng(seed)
    topics = generator.zipf(1.5, size=(num_texts, 1)) % num_topics
    ranks = generator.zipf(1.3, size=(num_texts, num_words)) % 300
    is_own = generator.random(size=ranks.shape) < 0.5
    return [
        " ".join(f"topic{topic}word{rank}" if own else f"word{rank}" for rank, own in zip(*rows, strict=True))
        for topic, *rows in zip(topics[:, 0].tolist(), ranks.tolist(), is_own.tolist(), strict=True)
    ]
