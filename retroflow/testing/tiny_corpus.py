"""A corpus that is written in a moment and in which retrieval can help: for tests, and for plugin authors.

Every document is a list of facts about things with invented names. Each fact is told in several documents in the same
words, so that a chunk has near copies elsewhere, while no document is a copy of another.
"""

import json
import random
from pathlib import Path

COLOURS = ("red", "green", "blue", "white", "black", "grey", "amber")
PLACES = ("harbour", "valley", "tower", "market", "orchard", "station", "river bend")
SYLLABLES = ("ba", "ko", "mi", "tu", "re", "sal", "dor", "nim", "vex", "pla")


def tiny_texts(num_documents: int = 40, *, facts_per_document: int = 24, seed: int = 0) -> list[str]:
    """Draw texts of about 60 bytes a fact; every fact occurs in about four of them."""
    draw = random.Random(seed)
    facts = [_fact(draw) for _ in range(max(facts_per_document, num_documents * facts_per_document // 4))]
    return [f"Notes, part {i}.\n" + "\n".join(draw.sample(facts, facts_per_document)) for i in range(num_documents)]


def write_tiny_corpus(folder: Path, num_documents: int = 40, *, seed: int = 0) -> Path:
    """Write `tiny_texts` as tiny.jsonl into an existing folder; returns the file, for `corpus.path`."""
    path = folder / "tiny.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i, text in enumerate(tiny_texts(num_documents, seed=seed)):
            record = {"id": f"notes/{i}", "text": text, "meta": {"title": f"Notes, part {i}"}}
            file.write(json.dumps(record) + "\n")
    return path


def _fact(draw: random.Random) -> str:
    name = "".join(draw.choices(SYLLABLES, k=3)).capitalize()
    return f"{name} keeps {draw.randrange(2, 99)} {draw.choice(COLOURS)} lamps near the {draw.choice(PLACES)}."
