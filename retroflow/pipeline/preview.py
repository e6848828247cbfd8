"""Preview of `prepare`: which artifacts exist, which are missing, and how large they will be.

Nothing is written, downloaded or embedded. A corpus that is not prepared yet is read for a few seconds.
"""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retroflow.components import create_corpus, create_embedder
from retroflow.corpus.checked import CheckedCorpus
from retroflow.corpus.tokenizer import Tokenizer
from retroflow.embedding.checked import CheckedEmbedder
from retroflow.errors import RetroflowError
from retroflow.pipeline import fingerprint
from retroflow.pipeline.given_tokenizer import given_tokenizer
from retroflow.pipeline.no_downloads import no_downloads
from retroflow.pipeline.options import DataOptions, NeighbourOptions
from retroflow.pipeline.recipe_retriever import RecipeRetriever
from retroflow.recipe import Recipe
from retroflow.store.artifact import artifact_folder
from retroflow.store.manifest import KINDS, Manifest, read_manifest

READ_SECONDS = 5.0
"""Time limit for reading a corpus that is not prepared yet, to count its text."""

BYTES_PER_TOKEN = 3.8
"""Bytes per token of a trained byte-level BPE; English and code with 8,192 to 32,768 entries have 3.3 to 4.3."""

_LONGEST_REASON = 120


@dataclass(frozen=True)
class Preview:
    """Facts about a recipe's artifacts before they are made.

    Attributes:
        present: kinds that exist.
        missing: kinds that would be made.
        chunks: split -> number of chunks; None if unknown.
        is_estimate: whether `chunks` is estimated from the text.
        vocabulary_size: entries of the tokenizer; an upper bound while it is not trained.
        new_bytes: disk space of the missing kinds; None if unknown.
        notes: what is unknown, and why; and what is not needed.
        names: of its artifacts, as far as known: a name depends on the artifact before.
        unnamed: the notes about what keeps artifacts from being named on this machine.
    """

    present: tuple[str, ...]
    missing: tuple[str, ...]
    chunks: dict[str, int] | None
    is_estimate: bool
    vocabulary_size: int | None
    new_bytes: int | None
    notes: tuple[str, ...]
    names: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()


UNKNOWN = Preview((), KINDS, chunks=None, is_estimate=False, vocabulary_size=None, new_bytes=None, notes=())
"""The result if nothing could be found out."""


@dataclass
class _Found:
    """The facts found so far."""

    manifests: dict[str, Manifest] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    dimension: int | None = None
    not_needed: tuple[str, ...] = ()


def preview(recipe: Recipe, *, retrieval: bool = True) -> Preview:
    """Find what is prepared, and estimate the rest.

    Args:
        recipe: the checked recipe.
        retrieval: whether more than chunks is needed.

    Raises:
        RetroflowError: the corpus cannot be read, or holds no text.
    """
    data = DataOptions(**recipe.section("data"))
    corpus = create_corpus(recipe.section("corpus"))
    found = _Found()
    with no_downloads():
        tokenizer, is_known = _tokenizer(recipe, data, found)
        artifacts = Path(os.path.expanduser(data.artifacts_folder))
        if is_known and any(artifacts.glob("chunks-*")):
            given = None if tokenizer is None else tokenizer.fingerprint()
            _look(artifacts, "chunks", fingerprint.chunks_inputs(corpus.fingerprint(), given, data), found)
        if retrieval:
            _look_further(recipe, artifacts, found)
        chunks = _counted(found)
        is_estimate = chunks is None
        if chunks is None:
            chunks = _estimated(corpus, data, tokenizer, found)
    kinds = [kind for kind in KINDS if kind not in found.not_needed] if retrieval else KINDS[:1]
    missing = tuple(kind for kind in kinds if kind not in found.manifests)
    vocabulary_size = data.vocabulary_size if is_known else None
    if tokenizer is not None:
        vocabulary_size = tokenizer.vocabulary_size
    if "chunks" in found.manifests:
        vocabulary_size = int(found.manifests["chunks"].info["vocabulary_size"])
    return Preview(
        present=tuple(kind for kind in kinds if kind in found.manifests),
        missing=missing,
        chunks=chunks,
        is_estimate=is_estimate and chunks is not None,
        vocabulary_size=vocabulary_size,
        new_bytes=_new_bytes(recipe, missing, chunks, vocabulary_size, found),
        notes=(*found.unnamed, *found.notes),
        names=tuple(found.names),
        unnamed=tuple(found.unnamed),
    )


def _tokenizer(recipe: Recipe, data: DataOptions, found: _Found) -> tuple[Tokenizer | None, bool]:
    """Return the tokenizer, None for one that is not trained yet, and whether it is known."""
    try:
        return given_tokenizer(recipe, data), True
    except (RetroflowError, OSError) as error:
        found.unnamed.append(f"the tokenizer is not on this machine ({_first_line(error)})")
        return None, False


def _look(artifacts: Path, kind: str, inputs: Mapping[str, Any], found: _Found) -> None:
    """Record an artifact if it exists; its bytes are not checked here."""
    folder = artifact_folder(artifacts, kind, inputs)
    found.names.append(folder.name)
    with suppress(FileNotFoundError, NotADirectoryError):
        found.manifests[kind] = read_manifest(folder)


def _look_further(recipe: Recipe, artifacts: Path, found: _Found) -> None:
    chunks, retriever = _counted(found), RecipeRetriever(recipe.section("retriever"))
    embedder: CheckedEmbedder | None = None
    try:
        made = retriever.new()
        embedder = _embedder_of(recipe, retriever, found)
        if found.dimension is not None:
            made.check_vectors(chunks["train"] if chunks else None, found.dimension)
    except RetroflowError as error:
        found.unnamed.append(f"the retriever cannot be used as it is ({_first_line(error)})")
        return
    if chunks is None or (embedder is None and retriever.reads_vectors):
        return
    if embedder is not None:
        inputs = fingerprint.embeddings_inputs(found.manifests["chunks"].fingerprint, embedder.fingerprint())
        _look(artifacts, "embeddings", inputs, found)
        if "embeddings" not in found.manifests:
            return
    inputs = retriever.index_inputs({kind: manifest.fingerprint for kind, manifest in found.manifests.items()})
    _look(artifacts, "index", inputs, found)
    if "index" not in found.manifests:
        return
    neighbours = NeighbourOptions(**recipe.section("neighbours"))
    inputs = fingerprint.neighbours_inputs(found.manifests["index"].fingerprint, retriever.search_options, neighbours)
    _look(artifacts, "neighbours", inputs, found)


def _embedder_of(recipe: Recipe, retriever: RecipeRetriever, found: _Found) -> CheckedEmbedder | None:
    """Make the embedder; None if the retriever reads no vectors, or if it cannot be made here, which is noted."""
    if not retriever.reads_vectors:
        found.not_needed = ("embeddings",)
        found.notes.append(f"no embeddings: {retriever.owner} searches the texts of the chunks")
        return None
    try:
        embedder = create_embedder(recipe.section("embedder"))
        found.dimension = int(embedder.dimension)
        embedder.fingerprint()
    except (RetroflowError, OSError) as error:
        found.dimension = None
        found.unnamed.append(f"the embedder cannot be created yet ({_first_line(error)})")
        return None
    return embedder


def _counted(found: _Found) -> dict[str, int] | None:
    if "chunks" not in found.manifests:
        return None
    return {split: int(counts["chunks"]) for split, counts in found.manifests["chunks"].info["splits"].items()}


def _estimated(
    corpus: CheckedCorpus, data: DataOptions, tokenizer: Tokenizer | None, found: _Found
) -> dict[str, int] | None:
    """Estimate the chunks of each split from the size of its text; None if the corpus is too large to read now."""
    per_token = BYTES_PER_TOKEN
    texts = {"train": 0, "valid": 0}
    documents = {"train": 0, "valid": 0}
    began = time.monotonic()
    for document in corpus.documents():
        if tokenizer is not None and not any(documents.values()):
            sample = tokenizer.encode(document.text[:100_000])
            per_token = max(1.0, sample.num_bytes / max(1, len(sample.ids)))
        texts[document.split] += len(document.text.encode())
        documents[document.split] += 1
        if time.monotonic() - began > READ_SECONDS:
            read = sum(texts.values())
            found.notes.append(
                f"the corpus is larger than the {sum(documents.values()):,} documents ({read / 1e6:,.0f} MB) that were "
                f"read in {READ_SECONDS:g} s, so its chunks are not known"
            )
            return None
    per_chunk = per_token * data.chunk_length
    # The last chunk of a document is half full on average.
    return {split: round(texts[split] / per_chunk + documents[split] / 2) for split in texts}


def _new_bytes(
    recipe: Recipe,
    missing: tuple[str, ...],
    chunks: dict[str, int] | None,
    vocabulary: int | None,
    found: _Found,
) -> int | None:
    """Return the disk space of the missing kinds, without files that are removed at the end of a stage."""
    if not missing:
        return 0
    searches_texts = "embeddings" in found.not_needed
    if chunks is None or (found.dimension is None and not searches_texts and {"embeddings", "index"} & set(missing)):
        return None
    sizes = stage_bytes(
        sum(chunks.values()),
        chunks["train"],
        chunk_length=recipe.section("data")["chunk_length"],
        width=None if searches_texts else found.dimension,
        vocabulary=vocabulary or 0,
        k=recipe.section("neighbours")["k"],
    )
    return sum(sizes[kind] for kind in missing)


def stage_bytes(
    total: int, train: int, *, chunk_length: int, width: int | None, vocabulary: int, k: int
) -> dict[str, int]:
    """Return the disk space of every kind of artifact.

    Args:
        total, train: chunks of both splits, and those that are searched.
        chunk_length: m.
        width: of the embeddings; None if the retriever reads texts.
        vocabulary: entries of the tokenizer.
        k: neighbours of a chunk.
    """
    token_bytes = 2 if vocabulary <= 1 << 16 else 4
    return {
        "chunks": total * (chunk_length * token_bytes + 2 + 4 + 8),
        "embeddings": total * (width or 0) * 2,
        # Exact and graph indexes keep every vector, quantised ones less; of texts, 8 bytes a different word.
        "index": train * (8 * chunk_length if width is None else width * 4 + 64),
        "neighbours": total * k * (8 + 4),
    }


def _first_line(error: BaseException) -> str:
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]} ..."
