"""Stage 2: chunks -> text -> embeddings, float16."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.console import Advance, progress
from retroflow.corpus.tokenizer import Tokenizer, load_tokenizer
from retroflow.embedding.checked import CheckedEmbedder
from retroflow.errors import CorpusError, InvalidVectorsError
from retroflow.pipeline.fingerprint import Inputs
from retroflow.pipeline.stages import Block, row_blocks
from retroflow.protocols import EmbeddedCorpus, Int64Array
from retroflow.retrieval.keys import Keys
from retroflow.store.array_file import Array
from retroflow.store.artifact import parent_of
from retroflow.store.chunk_store import ChunkSource, ChunkStore
from retroflow.store.embedding_store import EmbeddingStore
from retroflow.store.kept import kept_folder
from retroflow.store.manifest import Manifest
from retroflow.store.pieces import Pieces, join_pieces

ROWS_PER_BLOCK = 2048  # 1.5 MB of embeddings at D = 384, and about 5 s of a BERT on two cores
TEXT_ROWS = 1024


class EmbeddingStage:
    """The embeddings of both splits; a `retroflow.pipeline.stages.Stage`.

    Args:
        inputs: of the artifact's fingerprint.
        chunks_folder, chunks: the chunks artifact.
        embedder: is fitted on the training chunks first.
        options: the recipe's embedder section.
        stored: has the vectors already, and what the embedder has learned; None if they have to be made.
    """

    kind, doing, unit = "embeddings", "embed chunks", "chunks"
    final_errors: tuple[type[Exception], ...] = ()

    def __init__(
        self,
        inputs: Inputs,
        chunks_folder: Path,
        chunks: Manifest,
        embedder: CheckedEmbedder,
        options: Mapping[str, Any],
        stored: EmbeddedCorpus | None = None,
    ) -> None:
        self.inputs, self.parents = inputs, {"chunks": parent_of(chunks)}
        self._chunks_folder, self._embedder, self._options = chunks_folder, embedder, options
        self._stored = stored

    def begin(self, partial: Path) -> dict[str, Any]:
        """As in `Stage`: fits the embedder."""
        self._tokenizer = load_tokenizer(str(self._chunks_folder / "tokenizer"))
        self._stores = {split: ChunkStore.open(self._chunks_folder / split) for split in ("train", "valid")}
        self._lengths = {split: len(store) for split, store in self._stores.items()}

        def fit(folder: Path) -> None:
            if self._stored is not None and self._stored.learned is not None:
                shutil.copytree(self._stored.learned, folder, dirs_exist_ok=True)
                return
            with progress("fit the embedder", self._lengths["train"], "chunks") as advance:
                self._embedder.fit(_texts(self._stores["train"], self._tokenizer, advance))
            self._embedder.save(folder)

        self._files = kept_folder(partial, "embedder", fit, self.parents)
        self._embedder.load(partial / "embedder")
        embedder = {name: entry.to_json() for name, entry in self._files.items()}
        return {"rows_per_block": ROWS_PER_BLOCK, "embedder": embedder}

    def size(self) -> int:
        """As in `Stage`."""
        return sum(self._lengths.values())

    def blocks(self) -> Iterator[Block]:
        """As in `Stage`.

        Raises:
            InvalidVectorsError: the vectors have a wrong shape, or values beyond float16.
        """
        return row_blocks(self._lengths, ROWS_PER_BLOCK, self._embed)

    def join(self, partial: Path, pieces: Pieces, sources: Sequence[str]) -> Manifest:
        """As in `Stage`."""
        files = self._files | join_pieces(partial, pieces, sources)
        splits = {split: {"chunks": length} for split, length in self._lengths.items()}
        info = {"dimension": self._embedder.dimension, "splits": splits}
        return Manifest(self.kind, self.inputs, self.parents, info, files, self._options)

    def _embed(self, split: str, rows: slice) -> dict[str, Array]:
        if self._stored is not None:
            return {f"{split}/embeddings": self._copied(self._stored, split, rows)}
        vectors = self._embedder.embed(chunk_texts(self._stores[split], self._tokenizer, rows))
        return {f"{split}/embeddings": half_precision(vectors, self._embedder.owner, split, rows.start)}

    def _copied(self, stored: EmbeddedCorpus, split: str, rows: slice) -> Array:
        """The stored vectors of some rows, of whole and of partial documents."""
        store = self._stores[split]
        documents = np.asarray(store.document_ids[rows])
        parts = []
        for document in np.unique(documents).tolist():
            own = rows.start + np.flatnonzero(documents == document)
            first = int(np.searchsorted(store.document_ids, document))
            record, last = store.document(document), int(own[-1]) - first
            vectors = stored.vectors(record.id)
            if last >= len(vectors):
                raise CorpusError(f'"{record.id}" is cut into other chunks here than those that its vectors are of.')
            parts.append(vectors[own - first])
        return np.concatenate(parts)


def _texts(store: ChunkStore, tokenizer: Tokenizer, advance: Advance) -> Iterator[str]:
    for start in range(0, len(store), TEXT_ROWS):
        rows = slice(start, min(start + TEXT_ROWS, len(store)))
        yield from chunk_texts(store, tokenizer, rows)
        advance(rows.stop - rows.start)


def training_keys(folders: Mapping[str, Path]) -> Keys:
    """The training chunks as keys: their texts from the chunks artifact, their vectors from the embeddings artifact.

    Args:
        folders: of these artifacts by kind; one that is not given is not read.
    """
    vectors = EmbeddingStore.open(folders["embeddings"] / "train") if "embeddings" in folders else None
    if "chunks" not in folders:
        return Keys(vectors)
    tokenizer = load_tokenizer(str(folders["chunks"] / "tokenizer"))
    return Keys(vectors, ChunkTexts(ChunkStore.open(folders["chunks"] / "train"), tokenizer))


@dataclass(frozen=True)
class ChunkTexts:
    """The texts of a split's chunks; a `retroflow.protocols.TextSource`."""

    store: ChunkSource
    tokenizer: Tokenizer

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, rows: slice, /) -> list[str]:
        return chunk_texts(self.store, self.tokenizer, rows)


def chunk_texts(store: ChunkSource, tokenizer: Tokenizer, rows: slice | Int64Array) -> list[str]:
    """Decode some chunks, without the padding of a document's last chunk."""
    tokens = np.asarray(store.tokens[rows])
    lengths = store.lengths[rows].tolist()
    texts = tokenizer.decode_batch([row[:length] for row, length in zip(tokens, lengths, strict=True)])
    store.release()
    return texts


def half_precision(vectors: NDArray[np.floating], owner: str, split: str, first_row: int) -> NDArray[np.float16]:
    """Round embeddings to float16, as they are stored.

    Args:
        vectors: [n, D].
        owner: the embedder, for the error.
        split: what its chunks are numbered in, such as "train", for the error.
        first_row: number of the first of them.

    Raises:
        InvalidVectorsError: a value is not finite in float16.
    """
    with np.errstate(over="ignore"):
        half: NDArray[np.float16] = np.asarray(vectors, dtype=np.float16)
    finite = np.isfinite(half).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise InvalidVectorsError(
            f"embedder {owner}: the embedding of {split} chunk {first_row + row} has values that are not finite in "
            "float16 (largest 65,504). Normalise the vectors in the embedder."
        )
    return half
