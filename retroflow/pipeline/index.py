"""Stage 3: embeddings or texts of the training chunks -> the retriever's index."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retroflow.console import Advance, progress, say
from retroflow.errors import DamagedDataError, RetrieverError, RetroflowError, UsageError, words_of
from retroflow.pipeline.embeddings import training_keys
from retroflow.pipeline.fingerprint import Inputs
from retroflow.pipeline.memory import release_free_memory
from retroflow.pipeline.stages import Block, row_blocks
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.retrieval.index_shards import IndexShards
from retroflow.retrieval.keys import Keys
from retroflow.store.array_file import Array
from retroflow.store.artifact import INDEX_FOLDER, KEPT_FOLDER
from retroflow.store.kept import kept_folder
from retroflow.store.manifest import FileEntry, Manifest
from retroflow.store.pieces import Pieces

NO_ROOM_BYTES = 64 << 10
ROWS_PER_SHARD = 16_384  # a multiple of what retrievers read at a time


class IndexStage:
    """The retriever's index; a `retroflow.pipeline.stages.Stage`.

    If the retriever can (`BuildsInShards`), the index is trained once, filled in blocks and merged. Otherwise the stage
    has no blocks: one process builds the index, while others wait for it.

    Args:
        inputs: of the artifact's fingerprint.
        folders: of the artifacts that the retriever reads, by kind: embeddings, chunks or both.
        parents: how the manifest names them.
        new_retriever: makes the recipe's retriever, without an index.
        options: the recipe's retriever section.
    """

    kind, unit = "index", "chunks"
    # The options have to change then, and it is another artifact.
    final_errors: tuple[type[Exception], ...] = (UsageError,)

    def __init__(
        self,
        inputs: Inputs,
        folders: Mapping[str, Path],
        parents: dict[str, dict[str, str]],
        new_retriever: Callable[[], CheckedRetriever],
        options: Mapping[str, Any],
    ) -> None:
        self.inputs, self.parents = inputs, parents
        self._new, self._options = new_retriever, options
        self._keys = keys = training_keys(folders)
        self._dimension = None if keys.vectors is None else int(keys.vectors.shape[1])
        self._shards = new_retriever().in_shards(len(keys), self._dimension)
        self.doing = "fill the index" if self._shards else ""

    def begin(self, partial: Path) -> dict[str, Any]:
        """As in `Stage`: train the index, or build it where it has no blocks.

        Raises:
            RetrieverError: the retriever fails, or cannot read what it has just written.
            OSError: the disk is full.
        """
        if self._shards is None:
            self._files = self._saved(
                partial, lambda folder: build_and_save(folder, self._keys, self._new()), "building"
            )
            return {}

        def train(folder: Path) -> None:
            retriever = self._new()
            say(f"training the index with {retriever.owner}, {len(self._keys):,} chunks")
            self._shards_of(retriever).train(self._keys, folder)

        kept = partial / KEPT_FOLDER
        kept.mkdir(exist_ok=True)
        with _naming_a_full_disk(partial):
            trained = kept_folder(kept, "trained", train, self.parents)
        self._shards.open_trained(kept / "trained")
        return {"rows_per_shard": ROWS_PER_SHARD, "trained": {name: file.to_json() for name, file in trained.items()}}

    def size(self) -> int:
        """As in `Stage`."""
        return len(self._keys) if self._shards else 0

    def blocks(self) -> Iterator[Block]:
        """As in `Stage`."""
        return row_blocks({"train": self.size()}, ROWS_PER_SHARD, self._fill)

    def join(self, partial: Path, pieces: Pieces, sources: Sequence[str]) -> Manifest:
        """As in `Stage`; merges what was filled.

        Raises:
            RetrieverError, OSError: as `begin`.
        """
        if self._shards is not None:

            def filled() -> Iterator[dict[str, Array]]:
                return (pieces.read(piece, source) for piece, source in enumerate(sources))

            def merge(folder: Path) -> None:
                retriever = self._new()
                shards = self._shards_of(retriever)
                shards.open_trained(partial / KEPT_FOLDER / "trained")
                retriever.merge(shards, filled, len(self._keys), self._dimension or 0)
                retriever.save(folder)

            self._files = self._saved(partial, merge, "merging")
        metric = self._new().capabilities.metric
        info = {"chunks": len(self._keys), "dimension": self._dimension, "metric": metric}
        return Manifest(self.kind, self.inputs, self.parents, info, self._files, self._options)

    def _fill(self, split: str, rows: slice) -> dict[str, Array]:
        if self._shards is None:
            raise RuntimeError("an index without shards has no blocks")
        return self._shards.fill(self._keys[rows])

    def _shards_of(self, retriever: CheckedRetriever) -> IndexShards:
        shards = retriever.in_shards(len(self._keys), self._dimension)
        if shards is None:
            raise RetrieverError(f"{retriever.owner}: divides() is true at one time, and false at another.")
        return shards

    def _saved(self, partial: Path, write: Callable[[Path], None], doing: str) -> dict[str, FileEntry]:
        """Write the index, and load it again: some libraries report no error on a full disk.

        An unfinished index of an earlier run is deleted.
        """

        def save(folder: Path) -> None:
            written = self._new()
            # Native code may crash or hang: the last line on the screen then names it.
            say(f"{doing} the index with {written.owner}, {len(self._keys):,} chunks")
            with _naming_a_full_disk(partial):
                write(folder)
                release_free_memory()
                _read_back(written, folder)
                written.search(self._keys[0:1], 1)

        return kept_folder(partial, INDEX_FOLDER, save, self.parents)


def build_and_save(folder: Path, keys: Keys, retriever: CheckedRetriever) -> None:
    """Build an index and save it, with progress; its memory is free when this returns."""
    with progress("build the index", None, "chunks") as advance:
        watched = [None if each is None else _Watched(each, advance) for each in (keys.vectors, keys.texts)]
        retriever.build(Keys(*watched))
        retriever.save(folder)  # some retrievers read the vectors only now


def _read_back(retriever: CheckedRetriever, folder: Path) -> None:
    """Load what this process has just saved; a failure is not damage, and building again would not help."""
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
def _naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Report a full disk where a library raises an error of its own, or writes half an index."""
    try:
        yield
    except (OSError, RetroflowError) as error:
        is_named = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if is_named or shutil.disk_usage(folder).free >= NO_ROOM_BYTES:
            raise
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}; {error}") from error


class _Watched:
    """Vectors or texts that report to the progress bar how many have been read; a build may read them again."""

    def __init__(self, source: Any, advance: Advance) -> None:
        self._source, self._advance = source, advance
        self.shape = getattr(source, "shape", (len(source),))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, rows: slice, /) -> Any:
        block = self._source[rows]
        self._advance(len(block))
        return block
