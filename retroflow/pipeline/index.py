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
from retroflow.pipeline.stages import Block
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.retrieval.keys import Keys
from retroflow.store.artifact import INDEX_FOLDER
from retroflow.store.kept import kept_folder
from retroflow.store.manifest import Manifest
from retroflow.store.pieces import Pieces

NO_ROOM_BYTES = 64 << 10


class IndexStage:
    """The retriever's index; a `retroflow.pipeline.stages.Stage` that one process makes, while others wait for it.

    Args:
        inputs: of the artifact's fingerprint.
        folders: of the artifacts that the retriever reads, by kind: embeddings, chunks or both.
        parents: how the manifest names them.
        new_retriever: makes the recipe's retriever, without an index.
        options: the recipe's retriever section.
    """

    kind, doing, unit = "index", "", "chunks"
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
        self._folders, self._new, self._options = folders, new_retriever, options

    def begin(self, partial: Path) -> dict[str, Any]:
        """Build and save the index, and load it again: some libraries report no error on a full disk.

        An unfinished index of an earlier run is deleted.

        Raises:
            RetrieverError: the retriever fails, or cannot read what it has just written.
            OSError: the disk is full.
        """
        keys = training_keys(self._folders)
        retriever = self._new()

        def save(folder: Path) -> None:
            # Native code may crash or hang: the last line on the screen then names it.
            say(f"building the index with {retriever.owner}, {len(keys):,} chunks")
            with _naming_a_full_disk(partial):
                build_and_save(folder, keys, self._new())
                release_free_memory()
                written = self._new()
                _read_back(written, folder)
                written.search(keys[0:1], 1)

        self._files = kept_folder(partial, INDEX_FOLDER, save, self.parents)
        dimension = None if keys.vectors is None else keys.vectors.shape[1]
        self._info = {"chunks": len(keys), "dimension": dimension, "metric": retriever.capabilities.metric}
        return {}

    def size(self) -> int:
        """As in `Stage`: it has no blocks."""
        return 0

    def blocks(self) -> Iterator[Block]:
        """As in `Stage`: none."""
        return iter(())

    def join(self, partial: Path, pieces: Pieces, sources: Sequence[str]) -> Manifest:
        """As in `Stage`."""
        return Manifest(self.kind, self.inputs, self.parents, self._info, self._files, self._options)


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
