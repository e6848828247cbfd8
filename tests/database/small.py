"""Small documents, and a database of them."""

import random
from pathlib import Path
from typing import Any

from retroflow.database.database import Database

WORDS = ["".join(random.Random(number).choices("abcdefghij", k=5)) for number in range(120)]
EMBEDDER = {"name": "lexical", "dimension": 32, "buckets": 4096}


def text_of(seed: int, words: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def documents_of(*seeds: int) -> list[dict[str, str]]:
    return [{"id": f"d{seed:03d}", "text": text_of(seed), "title": f"Title {seed}"} for seed in seeds]


def build(folder: Path, documents: Any, **changes: Any) -> Database:
    given = {"embedder": EMBEDDER, "retriever": "exact", "chunk_length": 8, "vocabulary_size": 300}
    return Database.build(folder, documents, **(given | changes))
