"""Small documents, and a database of them."""

import random
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.database.database import Database
from retroflow.database.identity import Identity

WORDS = ["".join(random.Random(number).choices("abcdefghij", k=5)) for number in range(120)]
EMBEDDER = {"name": "lexical", "dimension": 32, "buckets": 4096}


def text_of(seed: int, words: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def documents_of(*seeds: int) -> list[dict[str, str]]:
    return [{"id": f"d{seed:03d}", "text": text_of(seed), "title": f"Title {seed}"} for seed in seeds]


def build(folder: Path, documents: Any, **changes: Any) -> Database:
    given = {"embedder": EMBEDDER, "retriever": "exact", "chunk_length": 8, "vocabulary_size": 300}
    return Database.build(folder, documents, **(given | changes))


def answers(database: Database, queries: list[str], k: int = 5) -> list[list[tuple[str, int, float]]]:
    """(document, place of the chunk, score) of what each query finds."""
    return [
        [(hit.document, hit.chunk, hit.score) for hit in database.search(query, num_neighbours=k)] for query in queries
    ]


def brute_force(
    identity: Identity, texts: dict[str, str], queries: list[str], k: int = 5
) -> list[list[tuple[str, int, float]]]:
    """The same, from nothing but the texts and the database's tokenizer and embedder."""
    keys, vectors = [], []
    for id, text in sorted(texts.items()):
        tokens = identity.tokenizer.encode(text).ids
        chunks = [
            tokens[start : start + identity.chunk_length] for start in range(0, len(tokens), identity.chunk_length)
        ]
        keys += [(id, place) for place in range(len(chunks))]
        vectors.append(identity.embedder.embed(identity.tokenizer.decode_batch(chunks)))
    found = []
    stored = np.concatenate(vectors).astype(np.float16).astype(np.float64) if vectors else np.empty((0, 1))
    for query in identity.embedder.embed(queries).astype(np.float16).astype(np.float64):
        scores = (-np.square(stored - query).sum(axis=1)).astype(np.float32) if keys else []
        order = sorted(range(len(keys)), key=lambda row: (-scores[row], keys[row]))[:k]
        found.append([(*keys[row], float(scores[row])) for row in order])
    return found
