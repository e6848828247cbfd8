"""`retroflow prepare --dry-run`: hours and disk of preparing, from rates that are measured here within seconds.

Nothing is written or downloaded. Text is read, cut and embedded as by the recipe. An index of random vectors is built
and searched; a larger one is scaled by the vectors that a query, and a key, is compared with (`IndexOutline`).
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retroflow.components import create_corpus, create_embedder
from retroflow.corpus.chunking import chunk_document
from retroflow.corpus.tokenizer import train_tokenizer
from retroflow.embedding.checked import CheckedEmbedder
from retroflow.errors import CorpusError, RetroflowError
from retroflow.pipeline.given_tokenizer import given_tokenizer
from retroflow.pipeline.no_downloads import no_downloads
from retroflow.pipeline.options import DataOptions
from retroflow.pipeline.prepare import retrieves
from retroflow.pipeline.preview import Preview, preview, stage_bytes
from retroflow.pipeline.recipe_retriever import RecipeRetriever
from retroflow.protocols import IndexOutline
from retroflow.recipe import Recipe
from retroflow.store.disk import disk_size

SIZES = (10**6, 10**9)
SECONDS = 3.0
"""Of each measurement; a batch that has begun is ended."""

DOCUMENT_BATCH, EMBED_BATCH, INDEX_ROWS, QUERIES = 16, 64, 20_000, 1_024
STAGES = ("chunks", "embeddings", "index", "neighbours")


@dataclass(frozen=True)
class Rates:
    """Chunks per second of every stage in one process on this machine; 0 where nothing was measured.

    Attributes:
        chunks, embeddings: read and cut, and embedded.
        index, neighbours: added to, and searched in, an index of INDEX_ROWS vectors.
        outline: of that index, None if the retriever gives none.
        reading: only read, which every shard does for all of them; infinite where nothing was measured.
    """

    chunks: float
    embeddings: float = 0.0
    index: float = 0.0
    neighbours: float = 0.0
    outline: IndexOutline | None = None
    reading: float = math.inf


@dataclass(frozen=True)
class Estimate:
    """Preparing so many chunks.

    Attributes:
        count: chunks.
        hours: by stage, in one process, or in all shards at the same time; None if unknown.
        disk: bytes by kind of artifact.
        kind, memory: of the index, and bytes of memory while it is built; "" and None if unknown.
    """

    count: int
    hours: dict[str, float | None]
    disk: dict[str, int]
    kind: str
    memory: int | None

    def line(self) -> str:
        """Describe it in one line."""
        known = [hours for hours in self.hours.values() if hours is not None]
        parts = ", ".join(f"{stage} {_hours(hours)}" for stage, hours in self.hours.items())
        least = "" if len(known) == len(self.hours) else "at least "
        index = f"; index {self.kind}, {self.memory / 2**30:,.1f} GiB of memory" if self.memory is not None else ""
        return (
            f"{self.count:,} chunks: {parts}; {least}{_hours(sum(known))} in all; disk {disk_size(self.bytes)}{index}"
        )

    @property
    def bytes(self) -> int:
        """Disk space at the end; while a stage is joined its own is taken twice."""
        return sum(self.disk.values())


@dataclass(frozen=True)
class PreparationPlan:
    """The result of `prepare --dry-run`.

    Attributes:
        preview: what is there, and what is missing.
        rates: as measured here.
        estimates: for each of SIZES.
        notes: what could not be measured, and why.
        shards: for whose number the hours are.
    """

    preview: Preview
    rates: Rates
    estimates: tuple[Estimate, ...]
    notes: tuple[str, ...]
    shards: int = 1

    def lines(self) -> list[str]:
        """Describe it, one fact per line."""
        found = self.preview
        present, missing = ", ".join(found.present) or "nothing", ", ".join(found.missing) or "nothing"
        lines = [f"prepared   {present}; to be made: {missing}"]
        if found.chunks is not None:
            size = "unknown" if found.new_bytes is None else disk_size(found.new_bytes)
            about = "about " if found.is_estimate else ""
            lines.append(f"corpus     {about}{sum(found.chunks.values()):,} chunks; artifacts to be made: {size}")
        measured = ", ".join(f"{stage} {rate:,.0f}/s" for stage in STAGES if (rate := getattr(self.rates, stage)))
        lines.append(
            f"measured   {measured} (one process, this machine; index and neighbours with {INDEX_ROWS:,} vectors)"
        )
        lines += [f"estimate   {estimate.line()}" for estimate in self.estimates]
        shares = "divide the hours by their number; docs/scale.md says for which parts that is so"
        if self.shards > 1:
            shares = f"the hours are for {self.shards:,} processes like this one at the same time, the disk for all"
        lines.append(f"shares     {shares}")
        return [*lines, *(f"note       {note}" for note in (*found.notes, *self.notes)), "nothing was made"]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; null means unknown."""
        return {
            "prepared": list(self.preview.present),
            "missing": list(self.preview.missing),
            "chunks": self.preview.chunks,
            "artifacts_bytes": self.preview.new_bytes,
            "chunks_per_second": {stage: getattr(self.rates, stage) or None for stage in STAGES},
            "shards": self.shards,
            "estimates": [
                {
                    "chunks": one.count,
                    "hours": one.hours,
                    "disk_bytes": one.disk,
                    "index": one.kind or None,
                    "index_memory_bytes": one.memory,
                }
                for one in self.estimates
            ],
            "notes": [*self.preview.notes, *self.notes],
        }


def plan_preparation(recipe: Recipe, shards: int = 1) -> PreparationPlan:
    """Measure rates here, and estimate hours and disk.

    Args:
        recipe: what would be prepared.
        shards: processes that would work at the same time.

    Raises:
        RetroflowError: the corpus or the embedder cannot be used.
    """
    data = DataOptions(**recipe.section("data"))
    retriever, notes = RecipeRetriever(recipe.section("retriever")), list[str]()
    needs_index = retrieves(recipe) and data.format == "text"
    with no_downloads():
        found = preview(recipe, retrieval=needs_index)
        measured, texts = _cut(recipe, data)
        reads_vectors = needs_index and retriever.reads_vectors
        embedder = create_embedder(recipe.section("embedder")) if reads_vectors else None
        rates = measured if embedder is None else replace(measured, embeddings=_embed(embedder, texts))
    k, width = recipe.section("neighbours")["k"], None if embedder is None else embedder.dimension
    if not needs_index:
        notes.append("the recipe needs chunks only")
    elif width is None or "chunks" in retriever.built_over:
        notes.append(f"index and neighbours are not measured: {retriever.owner} reads texts")
    else:
        try:
            rates = _search(retriever, rates, width, k)
        except RetroflowError as error:
            notes.append(f"index and neighbours are not measured: {error}")
    vocabulary = found.vocabulary_size or data.vocabulary_size
    estimates = []
    for count in SIZES:
        made = retriever.new()
        outline = None if width is None else made.outline(count, width)
        disk = stage_bytes(count, count, chunk_length=data.chunk_length, width=width, vocabulary=vocabulary, k=k)
        if outline is not None:
            disk["index"] = outline.disk
        hours = _all_hours(count, rates, outline, has_embeddings=width is not None)
        if not needs_index:
            hours, disk = {"chunks": hours["chunks"]}, {"chunks": disk["chunks"]}
        kind, memory = ("", None) if outline is None else (outline.kind.partition(" (")[0], outline.building)
        if shards > 1:
            is_divided = made.in_shards(count, width) is not None
            if "index" in hours and not is_divided:
                notes.append(f"one process builds the index{kind and f' {kind}'} of {count:,} chunks (docs/scale.md)")
            hours = _divide(hours, shards, {"chunks": count / rates.reading / 3600}, [] if is_divided else ["index"])
        estimates.append(Estimate(count, hours, disk, kind, memory))
    return PreparationPlan(found, rates, tuple(estimates), tuple(notes), shards)


def _divide(
    hours: Mapping[str, float | None], shards: int, least: Mapping[str, float], whole: Collection[str]
) -> dict[str, float | None]:
    """Divide hours by stage over shards, but for a part of some stages, and for whole ones."""
    divided = dict[str, float | None]()
    for stage, alone in hours.items():
        undivided = least.get(stage, 0.0)
        divided[stage] = alone if alone is None or stage in whole else undivided + (alone - undivided) / shards
    return divided


def _cut(recipe: Recipe, data: DataOptions) -> tuple[Rates, list[str]]:
    """Read and cut documents; returns the rates of that, and the texts of the chunks."""
    tokenizer, documents, texts, seconds = given_tokenizer(recipe, data), list[str](), list[str](), 0.0
    started = time.monotonic()
    for document in create_corpus(recipe.section("corpus")).documents():
        documents.append(document.text)
        if time.monotonic() - started > SECONDS:
            break
    seconds = time.monotonic() - started
    if not documents:
        raise CorpusError("corpus: it has no document to measure with.")
    per_document = seconds / len(documents)
    tokenizer = tokenizer or train_tokenizer(documents, data.vocabulary_size)
    started, done = time.monotonic(), 0
    for start in range(0, len(documents), DOCUMENT_BATCH):
        for encoded in tokenizer.encode_batch(documents[start : start + DOCUMENT_BATCH]):
            cut = chunk_document(encoded, chunk_length=data.chunk_length, end_of_text=tokenizer.end_of_text)
            texts += tokenizer.decode_batch([row[:size] for row, size in zip(cut.tokens, cut.lengths, strict=True)])
            done += 1
        if time.monotonic() - started > SECONDS:
            break
    reading = max(per_document * done, 1e-9)
    seconds = time.monotonic() - started + reading
    return Rates(len(texts) / seconds, reading=len(texts) / reading), texts


def _embed(embedder: CheckedEmbedder, texts: Sequence[str]) -> float:
    """Return chunks per second, without the time to load a model."""
    embedder.fit(texts)
    embedder.embed(list(texts[:1]))
    started, done = time.monotonic(), 0
    for start in range(0, len(texts), EMBED_BATCH):
        done += len(embedder.embed(list(texts[start : start + EMBED_BATCH])))
        if time.monotonic() - started > SECONDS:
            break
    return done / max(time.monotonic() - started, 1e-9)


def _search(retriever: RecipeRetriever, rates: Rates, width: int, k: int) -> Rates:
    """Measure an index of random vectors."""
    vectors = np.random.default_rng(0).standard_normal((INDEX_ROWS, width)).astype(np.float16)
    made = retriever.new()
    if made.capabilities.device == "remote":
        raise RetroflowError(f"{retriever.owner} would keep the vectors on its server.")
    made.check_vectors(INDEX_ROWS, width)
    started = time.monotonic()
    made.build(vectors)
    queries = vectors[:QUERIES].astype(np.float32)
    made.search(queries[:1], k)  # some do the rest of a build now
    building = time.monotonic() - started
    started = time.monotonic()
    made.search(queries, k)
    searching = time.monotonic() - started
    outline = made.outline(INDEX_ROWS, width)
    return replace(rates, index=INDEX_ROWS / building, neighbours=QUERIES / searching, outline=outline)


def _all_hours(
    count: int, rates: Rates, outline: IndexOutline | None, *, has_embeddings: bool
) -> dict[str, float | None]:
    hours: dict[str, float | None] = {"chunks": count / rates.chunks / 3600}
    if has_embeddings:
        hours["embeddings"] = count / rates.embeddings / 3600
    measured = rates.outline
    if outline is None or measured is None or not (rates.index and rates.neighbours and measured.compared):
        return hours | {"index": None, "neighbours": None}
    adding = max(1.0, outline.compared_to_add) / max(1.0, measured.compared_to_add)
    searching = outline.compared / measured.compared
    return hours | {
        "index": count * adding / rates.index / 3600,
        "neighbours": count * searching / rates.neighbours / 3600,
    }


def _hours(hours: float | None) -> str:
    return "unknown" if hours is None else f"{hours:,.2f} h" if hours < 10 else f"{hours:,.0f} h"
