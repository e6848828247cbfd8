"""Stage 3: embeddings of the training chunks -> the retriever's index."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.errors import RetroflowError
from retroflow.pipeline.fingerprint import Inputs
from retroflow.pipeline.memory import give_back
from retroflow.pipeline.progress import Advance, progress
from retroflow.protocols import VectorSource
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.store.artifact import INDEX_FOLDER, parent_of
from retroflow.store.blocks import keep_folder, kept_folder
from retroflow.store.embedding_store import EmbeddingStore
from retroflow.store.manifest import Manifest

NO_ROOM_BYTES = 64 << 10


def make_index(
    partial: Path,
    inputs: Inputs,
    embeddings_folder: Path,
    embeddings: Manifest,
    new_retriever: Callable[[], CheckedRetriever],
) -> Manifest:
    """Build and save the index, and read it back: some libraries report no error on a full disk.

    Args:
        partial: the folder to make it in; half an index of an earlier run is thrown away.
        inputs: what the artifact is named by.
        embeddings_folder, embeddings: the embeddings artifact.
        new_retriever: makes the recipe's retriever, without an index.
    """
    vectors = EmbeddingStore.open(embeddings_folder / "train")
    metric = new_retriever().capabilities.metric
    files = kept_folder(partial, INDEX_FOLDER)
    if files is None:
        shutil.rmtree(partial / INDEX_FOLDER, ignore_errors=True)
        with _full_disk_told(partial):
            _build(partial / INDEX_FOLDER, vectors, new_retriever())
            give_back()
            written = new_retriever()
            written.load(partial / INDEX_FOLDER)
            written.search(np.asarray(vectors[0:1], dtype=np.float32), 1)
        files = keep_folder(partial, INDEX_FOLDER)
    info = {"vectors": len(vectors), "dimension": vectors.shape[1], "metric": metric}
    return Manifest("index", inputs, {"embeddings": parent_of(embeddings)}, info, files)


def _build(folder: Path, vectors: EmbeddingStore, retriever: CheckedRetriever) -> None:
    """Build and save; a function of its own, so that this index is out of memory before the next is read."""
    with progress("build the index", None, "vectors") as advance:
        retriever.build(_Watched(vectors, advance))
        retriever.save(folder)  # some read the vectors only now


@contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    """Blame a disk without room for what a library makes of it: an error of its own, or half an index."""
    try:
        yield
    except (OSError, RetroflowError) as error:
        if shutil.disk_usage(folder).free < NO_ROOM_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


class _Watched:
    """Vectors that tell the progress bar how many of them have been read; a build may read them more than once."""

    def __init__(self, vectors: VectorSource, advance: Advance) -> None:
        self._vectors, self._advance = vectors, advance
        self.shape = vectors.shape

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, rows: slice, /) -> NDArray[np.floating[Any]]:
        block = self._vectors[rows]
        self._advance(len(block))
        return block
