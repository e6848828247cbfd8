"""The inputs of every artifact; their hash is its fingerprint.

The chain: corpus, tokenizer and chunk length -> chunks; + embedder -> embeddings; + the retriever and its options ->
index; + search options, k and exclusion -> neighbours. A retriever that reads texts has its index made from the chunks.
docs/artifacts.md shows it as a table.
"""

from collections.abc import Mapping
from typing import Any

from retroflow.corpus.tokenizer import TRAINED_BY
from retroflow.pipeline.options import DataOptions, NeighbourOptions

# Increase it when a stage makes other bytes from the same inputs.
CHUNKS_VERSION = 2
EMBEDDINGS_VERSION = 1
INDEX_VERSION = 4
NEIGHBOURS_VERSION = 3

Inputs = dict[str, Any]


def chunks_inputs(corpus: Mapping[str, object], tokenizer: object, data: DataOptions) -> Inputs:
    """Return the inputs of the chunks.

    Args:
        corpus: the corpus' fingerprint.
        tokenizer: fingerprint of a given tokenizer; None for one that is trained.
        data: the recipe's data section.
    """
    trained = {"train": {"vocabulary_size": data.vocabulary_size, "library": TRAINED_BY}}
    inputs = {
        "version": CHUNKS_VERSION,
        "corpus": dict(corpus),
        "tokenizer": trained if tokenizer is None else {"given": tokenizer},
        "chunk_length": data.chunk_length,
    }
    return inputs if data.format == "text" else inputs | {"format": data.format}


def embeddings_inputs(chunks: str, embedder: Mapping[str, object]) -> Inputs:
    """Return the inputs of the embeddings, from the fingerprints of chunks and embedder."""
    return {"version": EMBEDDINGS_VERSION, "chunks": chunks, "embedder": dict(embedder)}


def index_inputs(
    built_over: Mapping[str, str], options: Mapping[str, Any], distribution: str, retriever: Mapping[str, object]
) -> Inputs:
    """Return the inputs of the index.

    Args:
        built_over: fingerprints by kind: of the embeddings, the chunks or both, whichever the retriever reads.
        options: the recipe's retriever section, complete; all of it but `search`, its own or that of a retriever that
            is a part of it, changes the index.
        distribution: of the retriever, "retroflow-annoy 0.1.0"; the version of retroflow itself is ignored.
        retriever: what the retriever's `fingerprint` adds.
    """
    build = _without_search(options)
    del build["name"]
    inputs = {
        "version": INDEX_VERSION,
        **built_over,
        "name": options["name"],
        "options": build,
        "retriever": dict(retriever),
    }
    is_plugin = distribution.partition(" ")[0] != "retroflow"
    return inputs | {"distribution": distribution} if is_plugin else inputs


def _without_search(options: Mapping[str, Any]) -> Inputs:
    kept = {key: value for key, value in options.items() if key != "search"}
    return {key: _without_search(value) if is_part(value) else value for key, value in kept.items()}


def search_options(options: Mapping[str, Any]) -> object:
    """Return the search options of a retriever section; with those of each part by its key if it has parts."""
    parts = {key: search_options(value) for key, value in options.items() if is_part(value)}
    own = options.get("search")
    return {"search": own, **parts} if parts else own


def is_part(value: object) -> bool:
    """Return whether an option of a retriever is another retriever with its options."""
    return isinstance(value, Mapping) and "name" in value


def neighbours_inputs(index: str, search: object, options: NeighbourOptions) -> Inputs:
    """Return the inputs of the neighbours, from the index's fingerprint and the retriever's search options."""
    return {
        "version": NEIGHBOURS_VERSION,
        "index": index,
        "search": search,
        "k": options.k,
        "exclude_same_document": options.exclude_same_document,
        "overfetch": options.overfetch,
    }
