"""Stage 4: the neighbours of every training and validation chunk, all of them training chunks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.errors import CorpusError
from retroflow.pipeline.fingerprint import Inputs
from retroflow.pipeline.legal_search import LegalSearch, Queries
from retroflow.pipeline.options import NeighbourOptions
from retroflow.pipeline.sharing import Sharing
from retroflow.pipeline.tables import Table
from retroflow.protocols import Int64Array, Neighbours
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.store.array_file import Array, ArraySpec
from retroflow.store.chunk_store import ChunkStore
from retroflow.store.embedding_store import EmbeddingStore
from retroflow.store.manifest import FileEntry, Manifest
from retroflow.store.neighbour_table import NeighbourTable
from retroflow.store.pieces import pieces_folder

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


class NeighbourStage:
    """The neighbour tables of both splits in the making.

    Args:
        partial: the folder to make them in; blocks that an earlier run finished are kept.
        folder: what it becomes.
        sources: chunks and embeddings.
        load: opens the index; not called before it is searched, so that shards do not wait for each other's.
        options: the recipe's neighbours section.

    Attributes:
        work: the blocks.
    """

    def __init__(
        self,
        partial: Path,
        folder: Path,
        sources: Sources,
        load: Callable[[], CheckedRetriever],
        options: NeighbourOptions,
    ) -> None:
        self._database = ChunkStore.open(sources.chunks / "train")
        self._embeddings = {split: EmbeddingStore.open(sources.embeddings / split) for split in ("train", "valid")}
        self._load, self._options = load, options
        self._own = _Own(self._database, options.exclude_same_document)
        self._parents = sources.parents
        basis = {"rows_per_block": ROWS_PER_BLOCK, "parents": self._parents}
        self.work = Table(
            kind="neighbours",
            partial=partial,
            pieces=pieces_folder(folder, basis),
            specs={split: self._specs(split) for split in self._embeddings},
            rows_per_block=ROWS_PER_BLOCK,
            make=self._make,
            verb="find neighbours of",
        )

    @cached_property
    def _search(self) -> LegalSearch:
        keys = self._database.document_ids if self._options.exclude_same_document else None
        return LegalSearch(self._load(), self._embeddings["train"], keys, self._options.overfetch)

    def intact(self) -> bool:
        """As in `SharedStage`: nothing is made at the beginning."""
        return True

    def finish(self, inputs: Inputs, sharing: Sharing) -> Manifest:
        """As in `SharedStage`; measures the recall on a sample, too."""
        files = self.work.fill(sharing)
        info = {
            "k": self._options.k,
            "chunks": {split: files[f"{split}/ids.npy"].shape[0] for split in self._embeddings},
            "recall": _measure_recall(self.work.partial, files, self._embeddings["train"], self._own, self._search),
        }
        self._database.release()
        return Manifest("neighbours", inputs, self._parents, info, files)

    def _specs(self, split: str) -> list[ArraySpec]:
        shape = (len(self._embeddings[split]), self._options.k)
        dtypes: dict[str, np.dtype[Any]] = {"ids": np.dtype(np.int64), "scores": np.dtype(np.float32)}
        return [ArraySpec(f"{split}/{name}.npy", dtype, shape) for name, dtype in dtypes.items()]

    def _make(self, split: str, rows: slice) -> dict[str, Array]:
        # Validation chunks are not in the database: nothing of theirs has to be left out.
        excluded = self._own.of(np.arange(rows.start, rows.stop)) if split == "train" else None
        vectors = self._embeddings[split][rows].astype(np.float32)
        found = self._search.search(Queries(vectors, excluded), self._options.k)
        self._database.release()
        return {f"{split}/ids.npy": found.ids, f"{split}/scores.npy": found.scores}


@dataclass(frozen=True)
class _Own:
    """What the neighbours of training chunks must not have in common with them: the document, or the row."""

    database: ChunkStore
    by_document: bool

    def of(self, rows: Int64Array) -> Int64Array:
        return np.asarray(self.database.document_ids[rows]) if self.by_document else rows


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
