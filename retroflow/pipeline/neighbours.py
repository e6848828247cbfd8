"""Stage 4: the neighbours of every training and validation chunk, all of them training chunks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retroflow.errors import CorpusError
from retroflow.pipeline.fingerprint import Inputs
from retroflow.pipeline.legal_search import LegalSearch, Queries
from retroflow.pipeline.options import NeighbourOptions
from retroflow.pipeline.progress import Advance, progress
from retroflow.protocols import Int64Array, Neighbours
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.store.array_file import ArraySpec
from retroflow.store.blocks import BlockedArrays
from retroflow.store.chunk_store import ChunkStore
from retroflow.store.embedding_store import EmbeddingStore
from retroflow.store.manifest import FileEntry, Manifest
from retroflow.store.neighbour_table import NeighbourTable

ROWS_PER_BLOCK = 4096
RECALL_SAMPLE = 500


@dataclass(frozen=True)
class Sources:
    """What neighbours are made from: folders of the finished artifacts, and how their manifests are named."""

    chunks: Path
    embeddings: Path
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


def make_neighbours(
    partial: Path, inputs: Inputs, sources: Sources, retriever: CheckedRetriever, options: NeighbourOptions
) -> Manifest:
    """Find the neighbours of every chunk, and measure the recall on a sample.

    Args:
        partial: the folder to make them in; blocks that an earlier run finished are kept.
        inputs: what the artifact is named by.
        sources: chunks and embeddings.
        retriever: with the index loaded.
        options: the recipe's neighbours section.
    """
    database = ChunkStore.open(sources.chunks / "train")
    vectors = EmbeddingStore.open(sources.embeddings / "train")
    keys = database.document_ids if options.exclude_same_document else None
    search = LegalSearch(retriever, vectors, keys, options.overfetch)
    files: dict[str, FileEntry] = {}
    for split in ("train", "valid"):
        embeddings = EmbeddingStore.open(sources.embeddings / split)
        own = _Own(database, options.exclude_same_document) if split == "train" else None
        with progress(f"find neighbours of {split} chunks", len(embeddings), "chunks") as advance:
            files |= _search_split(partial, split, embeddings, own, search, options.k, advance)
    info = {
        "k": options.k,
        "chunks": {split: files[f"{split}/ids.npy"].shape[0] for split in ("train", "valid")},
        "recall": _measure_recall(partial, files, vectors, _Own(database, options.exclude_same_document), search),
    }
    database.release()
    return Manifest("neighbours", inputs, sources.parents, info, files)


@dataclass(frozen=True)
class _Own:
    """What the neighbours of training chunks must not have in common with them: the document, or the row."""

    database: ChunkStore
    by_document: bool

    def of(self, rows: Int64Array) -> Int64Array:
        return np.asarray(self.database.document_ids[rows]) if self.by_document else rows


def _search_split(
    partial: Path,
    split: str,
    embeddings: EmbeddingStore,
    own: _Own | None,
    search: LegalSearch,
    k: int,
    advance: Advance,
) -> dict[str, FileEntry]:
    ids, scores = f"{split}/ids.npy", f"{split}/scores.npy"
    shape = (len(embeddings), k)
    specs = [ArraySpec(ids, np.dtype(np.int64), shape), ArraySpec(scores, np.dtype(np.float32), shape)]
    with BlockedArrays(partial, split, specs, ROWS_PER_BLOCK) as blocks:
        missing = blocks.missing()
        advance(len(embeddings) - sum(blocks.rows(block).stop - blocks.rows(block).start for block in missing))
        for block in missing:
            rows = blocks.rows(block)
            excluded = None if own is None else own.of(np.arange(rows.start, rows.stop))
            found = search.search(Queries(embeddings[rows].astype(np.float32), excluded), k)
            blocks.write(block, {ids: found.ids, scores: found.scores})
            if own is not None:
                own.database.release()
            advance(rows.stop - rows.start)
        return blocks.entries()


def _measure_recall(
    partial: Path, files: dict[str, FileEntry], vectors: EmbeddingStore, own: _Own, search: LegalSearch
) -> dict[str, float | int]:
    """Compare the table with exact search on training chunks spread evenly over the corpus."""
    rows = np.unique(np.linspace(0, len(vectors) - 1, min(RECALL_SAMPLE, len(vectors)), dtype=np.int64))
    queries = np.concatenate([vectors[row : row + 1] for row in rows.tolist()]).astype(np.float32)
    table = NeighbourTable.in_progress(partial / "train", files)
    answer = Neighbours(np.asarray(table.ids[rows]), np.asarray(table.scores[rows]))
    value = search.recall(Queries(queries, own.of(rows)), answer)
    return {"recall_at_k": round(value, 4), "queries": len(rows)}
