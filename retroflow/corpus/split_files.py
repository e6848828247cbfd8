"""The two paths of a corpus of files: for documents, and for validation documents."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from retroflow.corpus.duplicates import distinct_documents
from retroflow.corpus.files import FoundFile, describe_files, find_files, matches
from retroflow.corpus.split import choose_split
from retroflow.protocols import Counts, Document, Split


@dataclass(frozen=True, kw_only=True)
class SplitFiles:
    """Files with their split.

    Attributes:
        path: file, folder or glob of the documents.
        valid_path: the same for validation; None holds out a `valid_share` of the documents of `path` by their ids.
            Files of `valid_path` inside the folder `path` are not training files.
        valid_share: 0 <= share < 1; `prepare` refuses 0 without a `valid_path`.
        include: globs for the files of a folder.
        own_folders: skipped runs and artifacts of retroflow so far.
    """

    path: str
    valid_path: str | None
    valid_share: float
    include: tuple[str, ...]
    own_folders: set[str] = field(default_factory=set, init=False, compare=False)

    def mention(self, ending: str) -> bool:
        """Return whether one of the paths ends like this."""
        return self.path.endswith(ending) or (self.valid_path or "").endswith(ending)

    def files(self) -> Iterator[FoundFile]:
        """Yield the files of `path`, which are all training files if there is a `valid_path`."""
        held_out = None if self.valid_path is None else os.path.realpath(os.path.expanduser(self.valid_path))
        for file in self._find(self.path, "corpus.path"):
            if held_out is None or not _is_within(file, held_out):
                yield file

    def valid_files(self) -> Iterator[FoundFile]:
        """Yield the files of `valid_path`; nothing without one."""
        if self.valid_path is not None:
            yield from self._find(self.valid_path, "corpus.valid_path")

    def _find(self, path: str, key: str) -> Iterator[FoundFile]:
        return find_files(path, include=self.include, key=key, own_folders=self.own_folders)

    def __iter__(self) -> Iterator[tuple[FoundFile, Callable[[str], Split]]]:
        """Yield (file, function that gives the split of a document in it by its id), in a fixed order."""
        chosen = partial(choose_split, valid_share=self.valid_share)
        yield from ((file, chosen if self.valid_path is None else _train) for file in self.files())
        yield from ((file, _valid) for file in self.valid_files())

    def distinct(self, documents: Iterator[Document], counts: Counts) -> Iterator[Document]:
        """Remove blank documents and duplicates; see `distinct_documents`."""
        share = self.valid_share if self.valid_path is None else None
        yield from distinct_documents(documents, counts, place=f'corpus.path "{self.path}"', valid_share=share)
        counts.own_folders = tuple(sorted(self.own_folders))

    def fingerprint(self) -> dict[str, object]:
        """Return content and share as JSON values; without the paths, so that a corpus can be moved."""
        if self.valid_path is None:
            return {"valid_share": self.valid_share, "content": describe_files(self.files())}
        return {"content": describe_files(self.files()), "valid_content": describe_files(self.valid_files())}


def _train(id: str) -> Split:
    return "train"


def _valid(id: str) -> Split:
    return "valid"


def _is_within(file: FoundFile, held_out: str) -> bool:
    real = os.path.realpath(file.path)
    if os.path.exists(held_out):
        return real == held_out or real.startswith(held_out + os.sep)
    return matches(Path(real).parts, Path(held_out).parts)
