"""What every artifact depends on, and nothing else: the inputs whose hash names it.

The chain: corpus, tokenizer and chunk length -> chunks; + embedder -> embeddings; + retriever's build options ->
index; + search options, k and exclusion -> neighbours. docs/artifacts.md shows it as a table.
"""

from collections.abc import Mapping
from typing import Any

from retroflow.corpus.tokenizer import TRAINED_BY
from retroflow.pipeline.options import DataOptions, NeighbourOptions

# Raised when a stage would make other bytes from the same inputs.
CHUNKS_VERSION = 2
EMBEDDINGS_VERSION = 1
INDEX_VERSION = 1
NEIGHBOURS_VERSION = 1

Inputs = dict[str, Any]


def chunks_inputs(corpus: Mapping[str, object], tokenizer: object, data: DataOptions) -> Inputs:
    """Inputs of the chunks.

    Args:
        corpus: the corpus' fingerprint.
        tokenizer: fingerprint of a given tokenizer; None for one that is trained.
        data: the recipe's data section.
    """
    trained = {"train": {"vocabulary_size": data.vocabulary_size, "library": TRAINED_BY}}
    return {
        "version": CHUNKS_VERSION,
        "corpus": dict(corpus),
        "tokenizer": trained if tokenizer is None else {"given": tokenizer},
        "chunk_length": data.chunk_length,
    }


def embeddings_inputs(chunks: str, embedder: Mapping[str, object]) -> Inputs:
    """Inputs of the embeddings, from the chunks' fingerprint and the embedder's."""
    return {"version": EMBEDDINGS_VERSION, "chunks": chunks, "embedder": dict(embedder)}


def index_inputs(embeddings: str, name: str, retriever: Mapping[str, object]) -> Inputs:
    """Inputs of the index, from the embeddings' fingerprint, the retriever's name and its fingerprint."""
    return {"version": INDEX_VERSION, "embeddings": embeddings, "name": name, "retriever": dict(retriever)}


def neighbours_inputs(index: str, search: Mapping[str, object], options: NeighbourOptions) -> Inputs:
    """Inputs of the neighbours, from the index' fingerprint and every option that is not one of the build."""
    return {
        "version": NEIGHBOURS_VERSION,
        "index": index,
        "search": dict(search),
        "k": options.k,
        "exclude_same_document": options.exclude_same_document,
        "overfetch": options.overfetch,
    }
