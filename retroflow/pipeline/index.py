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

from retroflow.console import Advance, progress, say
from retroflow.errors import DamagedDataError, RetrieverError, RetroflowError, words_of
from retroflow.pipeline.fingerprint import Inputs
from retroflow.pipeline.memory import release_free_memory
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

    Raises:
        RetrieverError: the retriever fails, or cannot read what it has just written.
        OSError: the disk is full.

    Args:
        partial: the folder to make it in; half an index of an earlier run is thrown away.
        inputs: what the artifact is named by.
        embeddings_folder, embeddings: the embeddings artifact.
        new_retriever: makes the recipe's retriever, without an index.
    """
    vectors = EmbeddingStore.open(embeddings_folder / "train")
    retriever = new_retriever()
    metric = retriever.capabilities.metric
    files = kept_folder(partial, INDEX_FOLDER)
    if files is None:
        shutil.rmtree(partial / INDEX_FOLDER, ignore_errors=True)
        # Native code may crash or hang: the last line on the screen then says whose it was.
        say(f"building the index with {retriever.owner}, {len(vectors):,} vectors")
        with _full_disk_told(partial):
            _build(partial / INDEX_FOLDER, vectors, new_retriever())
            release_free_memory()
            written = new_retriever()
            _read_back(written, partial / INDEX_FOLDER)
            written.search(np.asarray(vectors[0:1], dtype=np.float32), 1)
        files = keep_folder(partial, INDEX_FOLDER)
    info = {"vectors": len(vectors), "dimension": vectors.shape[1], "metric": metric}
    return Manifest("index", inputs, {"embeddings": parent_of(embeddings)}, info, files)


def _build(folder: Path, vectors: EmbeddingStore, retriever: CheckedRetriever) -> None:
    """Build and save; a function of its own, so that this index is out of memory before the next is read."""
    with progress("build the index", None, "vectors") as advance:
        retriever.build(_Watched(vectors, advance))
        retriever.save(folder)  # some read the vectors only now


def _read_back(retriever: CheckedRetriever, folder: Path) -> None:
    """Load what this process has just saved: a failure is no damage, and to make it again would not help."""
    before = _files_with_sizes(folder)
    try:
        retriever.load(folder)
    except DamagedDataError as error:
        cause = error.__cause__ or error
        raise RetrieverError(
            f"{retriever.owner}: load() cannot read what save() has just written ({type(cause).__name__}: "
            f"{words_of(cause)}). This is a bug of the retriever, not damage; please report it to its authors."
        ) from error
    changed = sorted({name for name, _ in before ^ _files_with_sizes(folder)})
    if changed:
        raise RetrieverError(
            f"{retriever.owner}: load() changed the index that it opened ({', '.join(changed[:3])}), which counts as "
            "damage. This is a bug of the retriever; please report it to its authors."
        )


def _files_with_sizes(folder: Path) -> set[tuple[str, int]]:
    return {(path.relative_to(folder).as_posix(), path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


@contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    """Blame a disk without room for what a library makes of it: an error of its own, or half an index."""
    try:
        yield
    except (OSError, RetroflowError) as error:
        is_told = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if is_told or shutil.disk_usage(folder).free >= NO_ROOM_BYTES:
            raise
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}; {error}") from error


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
