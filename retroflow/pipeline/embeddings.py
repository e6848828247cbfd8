"""Stage 2: chunks -> text -> embeddings, float16."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retroflow.console import Advance, progress
from retroflow.corpus.tokenizer import Tokenizer
from retroflow.embedding.checked import CheckedEmbedder
from retroflow.errors import InvalidVectorsError
from retroflow.pipeline.fingerprint import Inputs
from retroflow.pipeline.sharing import Sharing
from retroflow.pipeline.tables import Table
from retroflow.protocols import Int64Array
from retroflow.store.array_file import Array, ArraySpec
from retroflow.store.artifact import parent_of
from retroflow.store.blocks import keep_folder, kept_folder
from retroflow.store.chunk_store import ChunkStore
from retroflow.store.manifest import FileEntry, Manifest
from retroflow.store.pieces import pieces_folder

ROWS_PER_BLOCK = 2048  # 1.5 MB of embeddings at D = 384, and about 5 s of a BERT on two cores
TEXT_ROWS = 1024


class EmbeddingStage:
    """The embeddings of both splits in the making.

    Args:
        partial: the folder to make them in; blocks that an earlier run finished are kept.
        folder: what it becomes.
        chunks_folder, chunks: the chunks artifact.
        embedder: is fitted on the training chunks first; where its weights are from, if it has a `source`, is said.
        tokenizer: the chunks' own.

    Attributes:
        work: the blocks.
    """

    def __init__(
        self,
        partial: Path,
        folder: Path,
        chunks_folder: Path,
        chunks: Manifest,
        embedder: CheckedEmbedder,
        tokenizer: Tokenizer,
    ) -> None:
        self._stores = {split: ChunkStore.open(chunks_folder / split) for split in ("train", "valid")}
        self._files = _keep_embedder(partial, embedder, self._stores["train"], tokenizer)
        self._embedder, self._tokenizer = embedder, tokenizer
        self._parents = {"chunks": parent_of(chunks)}
        basis = {
            "rows_per_block": ROWS_PER_BLOCK,
            "parents": self._parents,
            "embedder": {name: entry.to_json() for name, entry in self._files.items()},
        }
        self.work = Table(
            kind="embeddings",
            partial=partial,
            pieces=pieces_folder(folder, basis),
            specs={split: [self._spec(split)] for split in self._stores},
            rows_per_block=ROWS_PER_BLOCK,
            make=self._make,
            verb="embed",
        )

    def intact(self) -> bool:
        """As in `SharedStage`."""
        return kept_folder(self.work.partial, "embedder") == self._files

    def finish(self, inputs: Inputs, sharing: Sharing) -> Manifest:
        """As in `SharedStage`.

        Raises:
            InvalidVectorsError: the embedder gave vectors of a wrong shape, or values that float16 cannot hold.
            Unfinished: it is a merge, and pieces are missing.
        """
        files = self._files | self.work.fill(sharing)
        info = {
            "dimension": self._embedder.dimension,
            "splits": {split: {"chunks": len(store)} for split, store in self._stores.items()},
        }
        return Manifest("embeddings", inputs, self._parents, info, files)

    def _spec(self, split: str) -> ArraySpec:
        shape = (len(self._stores[split]), self._embedder.dimension)
        return ArraySpec(f"{split}/embeddings.npy", np.dtype(np.float16), shape)

    def _make(self, split: str, rows: slice) -> dict[str, Array]:
        vectors = self._embedder.embed(chunk_texts(self._stores[split], self._tokenizer, rows))
        return {f"{split}/embeddings.npy": _half(vectors, self._embedder.owner, split, rows.start)}


def _keep_embedder(
    partial: Path, embedder: CheckedEmbedder, store: ChunkStore, tokenizer: Tokenizer
) -> dict[str, FileEntry]:
    """Fit the embedder and keep its state, or load the state that an earlier run kept."""
    kept = kept_folder(partial, "embedder")
    folder = partial / "embedder"
    if kept is None:
        with progress("fit the embedder", len(store), "chunks") as advance:
            embedder.fit(_texts(store, tokenizer, advance))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        embedder.save(folder)
        kept = keep_folder(partial, "embedder")
    embedder.load(folder)
    return kept


def _texts(store: ChunkStore, tokenizer: Tokenizer, advance: Advance) -> Iterator[str]:
    for start in range(0, len(store), TEXT_ROWS):
        rows = slice(start, min(start + TEXT_ROWS, len(store)))
        yield from chunk_texts(store, tokenizer, rows)
        advance(rows.stop - rows.start)


@dataclass(frozen=True)
class ChunkTexts:
    """The texts of a split's chunks; a `retroflow.protocols.TextSource`."""

    store: ChunkStore
    tokenizer: Tokenizer

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, rows: slice, /) -> list[str]:
        return chunk_texts(self.store, self.tokenizer, rows)


def chunk_texts(store: ChunkStore, tokenizer: Tokenizer, rows: slice | Int64Array) -> list[str]:
    """Decode some chunks, without what fills up the last chunk of a document."""
    tokens = np.asarray(store.tokens[rows])
    lengths = store.lengths[rows].tolist()
    texts = tokenizer.decode_batch([row[:length] for row, length in zip(tokens, lengths, strict=True)])
    store.release()
    return texts


def _half(vectors: NDArray[np.floating], owner: str, split: str, first_row: int) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half: NDArray[np.float16] = np.asarray(vectors, dtype=np.float16)
    finite = np.isfinite(half).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise InvalidVectorsError(
            f"embedder {owner}: the embedding of {split} chunk {first_row + row} has values that are not finite in "
            "float16 (largest 65,504). Let the embedder normalise its vectors."
        )
    return half
