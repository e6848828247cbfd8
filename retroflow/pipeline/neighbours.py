"""Stage 4: the neighbours of every training and validation chunk, all of them training chunks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.console import say
from retroflow.corpus.tokenizer import load_tokenizer
from retroflow.errors import CorpusError
from retroflow.pipeline.embeddings import chunk_texts
from retroflow.pipeline.fingerprint import Inputs
from retroflow.pipeline.legal_search import LARGE_DOCUMENT, MAX_FETCH, RAN_OUT, ChunkQueries, Found, LegalSearch
from retroflow.pipeline.options import NeighbourOptions
from retroflow.pipeline.stages import Block, row_blocks
from retroflow.protocols import Float32Array, Int64Array
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.retrieval.keys import LazyQueries
from retroflow.store.array_file import Array, map_array, release_pages
from retroflow.store.chunk_store import ChunkStore
from retroflow.store.embedding_store import EmbeddingStore
from retroflow.store.manifest import FileEntry, Manifest
from retroflow.store.pieces import Pieces, join_pieces

ROWS_PER_BLOCK = 4096
RECALL_SAMPLE = 500
LEAST_RECALL = 0.5
SLOW_SHARE = 0.1
EMPTY_SHARE = 0.5
MOST_SCORE_ERROR = 0.15
"""Relative to the difference of two chunks. Product quantisers of 8 bytes for 64 dimensions are below 0.02."""


@dataclass(frozen=True)
class Sources:
    """The inputs of neighbours.

    Attributes:
        chunks: folder of the chunks.
        embeddings: folder of the embeddings, None if the retriever reads none.
        parents: their entries in the manifest, and the index's.
    """

    chunks: Path
    embeddings: Path | None
    parents: dict[str, dict[str, str]]


def check_enough_chunks(chunks: Manifest, options: NeighbourOptions) -> None:
    """Refuse a corpus in which some training chunk cannot have k neighbours.

    Raises:
        CorpusError: fewer than k training chunks outside the largest document (or outside the chunk itself).
    """
    train = chunks.info["splits"]["train"]
    own, whose = (
        (train["largest_document"], "its largest document") if options.exclude_same_document else (1, "a chunk itself")
    )
    outside = train["chunks"] - own
    if outside < options.k:
        raise CorpusError(
            f"corpus: too small, it has {outside} training {'chunk' if outside == 1 else 'chunks'} outside {whose} "
            f"({train['chunks']} chunks in {train['documents']} documents), and neighbours.k={options.k} needs at "
            f"least {options.k}. Add documents, lower neighbours.k, or shorten data.chunk_length."
        )


class NeighbourStage:
    """The neighbour tables of both splits; a `retroflow.pipeline.stages.Stage`.

    Args:
        inputs: of the artifact's fingerprint.
        sources: chunks, embeddings and parents.
        load: opens the index; called at the first search, so that shards do not wait for each other.
        options: the recipe's neighbours section.
    """

    kind, doing, unit = "neighbours", "find neighbours of chunks", "chunks"
    final_errors: tuple[type[Exception], ...] = ()

    def __init__(
        self, inputs: Inputs, sources: Sources, load: Callable[[], CheckedRetriever], options: NeighbourOptions
    ) -> None:
        self.inputs, self.parents = inputs, sources.parents
        self._sources, self._load, self._options = sources, load, options
        self._has_explained = False

    def begin(self, partial: Path) -> dict[str, Any]:
        """As in `Stage`."""
        chunks, embeddings = self._sources.chunks, self._sources.embeddings
        self._chunks = {split: ChunkStore.open(chunks / split) for split in ("train", "valid")}
        self._lengths = {split: len(store) for split, store in self._chunks.items()}
        self._embeddings = {split: EmbeddingStore.open(embeddings / split) for split in self._chunks if embeddings}
        self._tokenizer = load_tokenizer(str(chunks / "tokenizer"))
        self._database = self._chunks["train"]
        self._own = _Own(self._database, self._options.exclude_same_document)
        return {"rows_per_block": ROWS_PER_BLOCK}

    @cached_property
    def _search(self) -> LegalSearch:
        documents = self._database.document_ids if self._options.exclude_same_document else None
        return LegalSearch(self._load(), self._embeddings.get("train"), documents, self._options.overfetch)

    def size(self) -> int:
        """As in `Stage`."""
        return sum(self._lengths.values())

    def blocks(self) -> Iterator[Block]:
        """As in `Stage`."""
        return row_blocks(self._lengths, ROWS_PER_BLOCK, self._find)

    def join(self, partial: Path, pieces: Pieces, sources: Sequence[str]) -> Manifest:
        """As in `Stage`; measures the recall on a sample, too."""
        files = join_pieces(partial, pieces, sources)
        info = {
            "k": self._options.k,
            "chunks": self._lengths,
            "searched_exactly": _count_exact(partial, files),
            "without_neighbours": _count_empty(partial, files),
            "recall": self._measure_recall(),
        }
        self._database.release()
        return Manifest(self.kind, self.inputs, self.parents, info, files)

    def _find(self, split: str, rows: slice) -> dict[str, Array]:
        # Validation chunks are not in the database: nothing has to be excluded.
        excluded = self._own.of(np.arange(rows.start, rows.stop)) if split == "train" else None
        queries = ChunkQueries(self._queries(split, np.arange(rows.start, rows.stop)), excluded)
        found = self._search.own_answer(queries, self._options.k)
        self._tell_why_slow(found)
        found = self._search.complete(queries, found)
        self._database.release()
        return {f"{split}/ids": found.ids, f"{split}/scores": found.scores, f"{split}/found_by": found.by}

    def _queries(self, split: str, rows: Int64Array) -> LazyQueries:
        """Some chunks as queries."""
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)  # consecutive rows are read at once

        def vectors() -> Float32Array:
            stored = self._embeddings[split]
            return np.concatenate([stored[int(run[0]) : int(run[-1]) + 1] for run in runs]).astype(np.float32)

        def texts() -> list[str]:
            return chunk_texts(self._chunks[split], self._tokenizer, rows)

        return LazyQueries(len(rows), vectors=vectors, texts=texts)

    def _measure_recall(self) -> dict[str, float | int | None]:
        """Compare the retriever with exact search on training chunks spread evenly over the corpus."""
        count = len(self._database)
        rows = np.unique(np.linspace(0, count - 1, min(RECALL_SAMPLE, count), dtype=np.int64))
        queries = ChunkQueries(self._queries("train", rows), self._own.of(rows))
        found = self._search.judge(queries, self._search.own_answer(queries, self._options.k))
        return {
            "recall_at_k": None if found.recall is None else round(found.recall, 4),
            "queries": found.queries,
            "score_error": round(found.score_error, 4),
        }

    def _tell_why_slow(self, found: Found) -> None:
        """Explain once why the search will be slow."""
        shares = {reason: float((found.by == reason).mean()) for reason in (RAN_OUT, LARGE_DOCUMENT)}
        if self._has_explained or max(shares.values()) < SLOW_SHARE:
            return
        self._has_explained = True
        if shares[RAN_OUT] >= SLOW_SHARE:
            say(
                f"note: {self._search.retriever.owner} has too few candidates for {shares[RAN_OUT]:.0%} of these "
                "chunks. They are compared with every chunk instead, which is slow in a large corpus. Options of "
                "retriever.search give more candidates, and so does another retriever (docs/retrievers.md)."
            )
        else:
            say(
                f"note: {shares[LARGE_DOCUMENT]:.0%} of these chunks are of a document of more than {MAX_FETCH:,} "
                "chunks. They are compared with every chunk outside it, which takes long in a large corpus. Shorter "
                "documents are faster."
            )


@dataclass(frozen=True)
class _Own:
    """The keys by which chunks are excluded as neighbours of training chunks: their document, or their row."""

    database: ChunkStore
    by_document: bool

    def of(self, rows: Int64Array) -> Int64Array:
        return np.asarray(self.database.document_ids[rows]) if self.by_document else rows


def describe_exact(info: Mapping[str, Any]) -> str:
    """Describe how many chunks of a stage were searched exactly and why; empty if none."""
    total = sum(info["chunks"].values())
    reasons = {
        "retriever_ran_out": "the retriever had too few candidates",
        "large_document": f"their document has more than {MAX_FETCH:,} chunks",
    }
    counts = {reason: info["searched_exactly"][reason] for reason in reasons}
    return ", ".join(
        f"{count:,} ({count / total:.1%}) searched exactly since {reasons[reason]}"
        for reason, count in counts.items()
        if count
    )


def concerns(info: Mapping[str, Any], owner: str) -> list[str]:
    """Return warnings about the neighbours that a retriever found.

    Args:
        info: of the manifest.
        owner: the retriever's name in messages.
    """
    k, found = info["k"], info["recall"]
    warnings = []
    if found["recall_at_k"] is not None and found["recall_at_k"] < LEAST_RECALL:
        warnings.append(
            f"warning: recall@{k} is {found['recall_at_k']:.3f}: {owner} misses more than half of the nearest "
            "chunks, and the model reads others in their place. Raise options of retriever.search, choose others of "
            "retriever.build, or compare with retriever.name=exact (docs/retrievers.md)."
        )
    empty = info["without_neighbours"] / sum(info["chunks"].values())
    if empty > EMPTY_SHARE:
        warnings.append(
            f"warning: {owner} finds no neighbour at all for {empty:.0%} of the chunks, and the model has nothing to "
            "read there. Choose another retriever (docs/retrievers.md); one that compares words finds nothing in text "
            "without spaces between them."
        )
    if found["score_error"] > MOST_SCORE_ERROR:
        warnings.append(
            f"warning: the scores that {owner} reports are not the similarities of the chunks it found: half of them "
            f"are wrong by {found['score_error']:.0%} or more of what two chunks differ by. This is a bug of the "
            "retriever; under l2 a score is minus the squared distance."
        )
    return warnings


def _count_empty(partial: Path, files: Mapping[str, FileEntry]) -> int:
    """Count the chunks without any neighbour, in both splits."""
    count = 0
    for name in (name for name in files if name.endswith("/ids.npy")):
        ids = map_array(partial, name, files[name])
        count += int(np.count_nonzero(ids[:, 0] == -1))
        release_pages(ids)
    return count


def _count_exact(partial: Path, files: Mapping[str, FileEntry]) -> dict[str, int]:
    counts = dict.fromkeys(("retriever_ran_out", "large_document"), 0)
    for name in (name for name in files if name.endswith("/found_by.npy")):
        found_by = map_array(partial, name, files[name])
        for key, reason in zip(counts, (RAN_OUT, LARGE_DOCUMENT), strict=True):
            counts[key] += int(np.count_nonzero(found_by == reason))
        release_pages(found_by)
    return counts
