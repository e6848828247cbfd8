"""A small corpus and a recipe over it, for the tests of this room."""

import json
import random
from pathlib import Path
from typing import Any

from retroflow.recipe import Recipe

EXACT_FAISS = {"name": "faiss", "build": {"factory": "Flat"}}


def write_corpus(path: Path, num_documents: int, words: int = 120, seed: int = 0) -> Path:
    """A JSONL file of documents with words in common."""
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 6))) for _ in range(300)]
    with path.open("w", encoding="utf-8") as stream:
        for number in range(num_documents):
            text = " ".join(draw.choices(vocabulary, k=words))
            record = {"id": f"document {number}", "text": text, "meta": {"title": f"Title {number}"}}
            stream.write(json.dumps(record) + "\n")
    return path


def small_recipe(folder: Path, **sections: Any) -> Recipe:
    """A recipe over folder/corpus.jsonl (made if missing) with artifacts in folder/artifacts."""
    corpus = folder / "corpus.jsonl"
    if not corpus.exists():
        write_corpus(corpus, 40)
    values = {
        "corpus": {"name": "jsonl", "path": str(corpus), "valid_share": 0.2},
        "embedder": {"name": "lexical", "dimension": 32},
        "retriever": EXACT_FAISS,
        "neighbours": {"k": 2, "exclude_same_document": True, "overfetch": 4},
        "data": {"vocabulary_size": 400, "chunk_length": 16, "artifacts_folder": str(folder / "artifacts")},
    }
    for name, section in sections.items():
        values[name] = section if "name" in section else values[name] | section
    return Recipe(values, {}, folder / "small.yaml")


def recipe_file(folder: Path) -> Path:
    """A file of `small_recipe`, for the command line."""
    file = folder / "small.yaml"
    file.write_text("recipe_version: 1\nmodel: {name: retro}\n" + small_recipe(folder).to_yaml())
    return file
