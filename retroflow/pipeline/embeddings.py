"""Stage 2: chunks -> text -> embeddings, float16."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.errors import InvalidVectorsError
from retroflow.pipeline.fingerprint import Inputs
from retroflow.pipeline.progress import Advance, progress, say
from retroflow.protocols import Embedder
from retroflow.store.array_file import ArraySpec
from retroflow.store.artifact import parent_of
from retroflow.store.blocks import BlockedArrays, keep_folder, kept_folder
from retroflow.store.chunk_store import ChunkStore
from retroflow.store.manifest import FileEntry, Manifest

ROWS_PER_BLOCK = 2048  # 1.5 MB of embeddings at D = 384, and about 5 s of a BERT on two cores
TEXT_ROWS = 1024


def make_embeddings(
    partial: Path, inputs: Inputs, chunks_folder: Path, chunks: Manifest, embedder: Embedder, tokenizer: Tokenizer
) -> Manifest:
    """Embed the text of every chunk of both splits.

    Args:
        partial: the folder to make them in; blocks that an earlier run finished are kept.
        inputs: what the artifact is named by.
        chunks_folder, chunks: the chunks artifact.
        embedder: is fitted on the training chunks first; where its weights are from, if it has a `source`, is said.
        tokenizer: the chunks' own.

    Raises:
        InvalidVectorsError: the embedder gave vectors of a wrong shape, or values that float16 cannot hold.
    """
    source = getattr(embedder, "source", None)
    if source is not None:
        say(f"embedder: the model of the {source}")
    stores = {split: ChunkStore.open(chunks_folder / split) for split in ("train", "valid")}
    files = _keep_embedder(partial, embedder, stores["train"], tokenizer)
    for split, store in stores.items():
        with progress(f"embed {split} chunks", len(store), "chunks") as advance:
            files |= _embed_split(partial, split, store, embedder, tokenizer, advance)
    info = {
        "dimension": embedder.dimension,
        "splits": {split: {"chunks": len(store)} for split, store in stores.items()},
    }
    return Manifest("embeddings", inputs, {"chunks": parent_of(chunks)}, info, files)


def _keep_embedder(partial: Path, embedder: Embedder, store: ChunkStore, tokenizer: Tokenizer) -> dict[str, FileEntry]:
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


def chunk_texts(store: ChunkStore, tokenizer: Tokenizer, rows: slice) -> list[str]:
    """Decode a range of chunks, without what fills up the last chunk of a document."""
    tokens = np.asarray(store.tokens[rows])
    lengths = store.lengths[rows].tolist()
    texts = tokenizer.decode_batch([row[:length] for row, length in zip(tokens, lengths, strict=True)])
    store.release()
    return texts


def _embed_split(
    partial: Path, split: str, store: ChunkStore, embedder: Embedder, tokenizer: Tokenizer, advance: Advance
) -> dict[str, FileEntry]:
    name = f"{split}/embeddings.npy"
    spec = ArraySpec(name, np.dtype(np.float16), (len(store), embedder.dimension))
    with BlockedArrays(partial, split, [spec], ROWS_PER_BLOCK) as blocks:
        missing = blocks.missing()
        advance(len(store) - sum(blocks.rows(block).stop - blocks.rows(block).start for block in missing))
        for block in missing:
            rows = blocks.rows(block)
            vectors = embedder.embed(chunk_texts(store, tokenizer, rows))
            blocks.write(
                block, {name: _checked(vectors, (rows.stop - rows.start, embedder.dimension), split, rows.start)}
            )
            advance(rows.stop - rows.start)
        return blocks.entries()


def _checked(vectors: NDArray[np.floating], shape: tuple[int, int], split: str, first_row: int) -> NDArray[np.float16]:
    if tuple(vectors.shape) != shape:
        raise InvalidVectorsError(f"embedder: gave an array of shape {list(vectors.shape)} for {list(shape)}.")
    with np.errstate(over="ignore"):
        half: NDArray[np.float16] = np.asarray(vectors, dtype=np.float16)
    finite = np.isfinite(half).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise InvalidVectorsError(
            f"embedder: the embedding of {split} chunk {first_row + row} has values that are not finite in float16 "
            "(largest 65,504). Let the embedder normalise its vectors."
        )
    return half
