"""Documents from a Hugging Face data set, streamed from the hub or read from a local copy.

corpus: {name: datasets, path: wikimedia/wikipedia, config_name: 20231101.simple, text_key: text}
"""

import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, MinLen

from retroflow.corpus.compressed import require
from retroflow.corpus.documents import TextColumns, ValidShare
from retroflow.corpus.duplicates import distinct_documents
from retroflow.corpus.files import FoundFile, describe_files, find_files
from retroflow.corpus.split import choose_split
from retroflow.errors import CorpusError, DamagedDataError
from retroflow.options import checked_options
from retroflow.protocols import Corpus, Counts, Document, Split

COMMIT = re.compile(r"[0-9a-f]{40}")


@checked_options("corpus")
class DatasetsCorpus(Corpus):
    """Documents from the rows of a data set of the `datasets` library.

    Args:
        path: name on the hub, or a local folder: of data files, or written by `save_to_disk`.
        config_name: configuration (subset) of the data set.
        split: split to read.
        valid_split: split that is the validation split; None holds out a `valid_share` by a hash of the id.
        valid_share: share of the documents held out when there is no `valid_split`, 0 <= share < 1.
        revision: commit, branch or tag on the hub; with a full commit the fingerprint needs no request to the hub.
        text_key: column of the text.
        id_key: column of the id; without the column "id" the id is `split:row`.
        title_key: column of the title; without it the id is the title.
        max_document_bytes: the longest text that is accepted.

    Raises:
        UsageError: an option is out of range.
        MissingExtraError: datasets is not installed.
    """

    held_out_by: ClassVar[tuple[str, ...]] = ("valid_share", "valid_split")

    def __init__(  # noqa: PLR0913 - options of a recipe, one a key
        self,
        *,
        path: Annotated[str, MinLen(1)],
        config_name: str | None = None,
        split: str = "train",
        valid_split: str | None = None,
        valid_share: ValidShare = 0.05,
        revision: str | None = None,
        text_key: str = "text",
        id_key: str = "id",
        title_key: str = "title",
        max_document_bytes: Annotated[int, Ge(1)] = 67_108_864,
    ) -> None:
        require("datasets", extra="datasets", purpose="corpus.name=datasets")
        local = os.path.expanduser(path)
        self.is_local = os.path.isdir(local)
        self.path = local if self.is_local else path
        self.config_name, self.revision = config_name, revision
        self.split, self.valid_split, self.valid_share = split, valid_split, valid_share
        self.columns = TextColumns(text_key, id_key, title_key, max_document_bytes)
        self.counts = Counts()

    def documents(self) -> Iterator[Document]:
        """Stream the documents; see `Corpus.documents`.

        Raises:
            CorpusError: the data set, its configuration, split or column does not exist or cannot be reached.
            DamagedDataError: a row has no text, or cannot be read.
        """
        self.counts = Counts()
        return distinct_documents(
            self._read(),
            self.counts,
            place=f'corpus.path "{self.path}"',
            valid_share=self.valid_share if self.valid_split is None else None,
            valid_key="corpus.valid_split",
        )

    def fingerprint(self) -> dict[str, object]:
        """Return options and the commit on the hub, or the content of local files; see `Corpus.fingerprint`."""
        content: object = self._commit()
        if content is None:
            content = describe_files(self._local_files())
        return {
            "name": "datasets",
            "version": 1,
            "config_name": self.config_name,
            "splits": [self.split, self.valid_split],
            "valid_share": self.valid_share if self.valid_split is None else None,
            "keys": self.columns.keys,
            "content": content,
        }

    def _local_files(self) -> Iterator[FoundFile]:
        own_folders: set[str] = set()
        yield from find_files(self.path, include=("**/*",), key="corpus.path", own_folders=own_folders)
        if own_folders and not self._is_saved():
            raise CorpusError(
                f'corpus.path: "{self.path}" holds {min(own_folders)}, which retroflow made; a data set is read with '
                "all that is in its folder. Put the data files into a folder of their own."
            )

    def _read(self) -> Iterator[Document]:
        columns = self.columns
        for split in filter(None, (self.split, self.valid_split)):
            for number, row in enumerate(self._rows(split), start=1):
                place, id = f"{self.path}, {split} split, row {number}", row.get(columns.id)
                if id is None and columns.id != "id":
                    raise CorpusError(f'corpus.id_key: {place} has no "{columns.id}"; it has: {_names(row)}.')
                values = self._text(row, place), id, row.get(columns.title)
                split_of = partial(self._split_of, split)
                yield columns.document(values, name=f"{split}:{number}", place=place, split_of=split_of)

    def _split_of(self, split: str, id: str) -> Split:
        if self.valid_split is None:
            return choose_split(id, self.valid_share)
        return "train" if split == self.split else "valid"

    def _text(self, row: dict[str, Any], place: str) -> str:
        key = self.columns.text
        if key not in row:
            raise CorpusError(
                f'corpus.text_key: {place} has no column "{key}"; its columns: {_names(row)}. Name one of them.'
            )
        text = row[key]
        if not isinstance(text, str):
            kind = "null" if text is None else type(text).__name__
            raise DamagedDataError(
                f'{place}: "{key}" is {kind}, allowed is a string. '
                f"Name another column in corpus.text_key (there are: {_names(row)})."
            )
        return text

    def _rows(self, split: str) -> Iterator[dict[str, Any]]:
        rows = iter(self._open(split))
        number = 0
        while True:
            try:
                row = next(rows, None)
            except Exception as error:  # readers of a dozen formats, each with its own errors
                raise DamagedDataError(
                    f"{self.path}, {split} split: could not be read after row {number} ({_first_line(error)}). "
                    "Try again if the network was the reason; else the files are damaged, fetch them again."
                ) from error
            if row is None:
                return
            number += 1
            yield row

    def _open(self, split: str) -> Iterable[dict[str, Any]]:
        """Open one split as an iterable of rows; it is streamed."""
        import datasets

        try:
            if self._is_saved():
                saved = datasets.load_from_disk(self.path)
                rows: Iterable[dict[str, Any]] = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
            else:
                if not self.is_local:
                    # Without a network the loader retries for most of a minute; this asks once, and pins the commit.
                    self.revision = self._ask_hub()
                options = {"split": split, "streaming": True, "revision": self.revision}
                rows = datasets.load_dataset(self.path, self.config_name, **options)
        except CorpusError:
            raise
        except Exception as error:  # OSError, ValueError, KeyError and the library's and the hub's own
            raise self._not_opened(error, f"split {split}") from error
        return rows

    def _is_saved(self) -> bool:
        return any(Path(self.path, name).is_file() for name in ("dataset_dict.json", "state.json"))

    def _commit(self) -> str | None:
        """Return the commit on the hub; None for a local folder."""
        if self.is_local:
            return None
        if self.revision is None or not COMMIT.fullmatch(self.revision):
            # Pinned, since a data set that changes while it is read would have no fingerprint.
            self.revision = self._ask_hub()
        return self.revision

    def _ask_hub(self) -> str | None:
        """Return the commit of the revision; fail at once without a network, or if it does not exist."""
        from huggingface_hub import HfApi

        try:
            return HfApi().dataset_info(self.path, revision=self.revision).sha
        except Exception as error:  # no network, no such name, no permission
            raise self._not_opened(error, f"revision {self.revision or 'main'}") from error

    def _not_opened(self, error: Exception, what: str) -> CorpusError:
        config = f", configuration {self.config_name}" if self.config_name else ""
        return CorpusError(
            f'corpus.path: the data set "{self.path}"{config}, {what}, could not be opened: tried the folder '
            f"{Path(self.path).absolute()} ({'is there' if self.is_local else 'does not exist'}) and "
            f"https://huggingface.co/datasets/{self.path} ({_first_line(error)}). Check the names; without a "
            "network, set corpus.path to a local copy, a folder with its data files or one made by save_to_disk."
        )


def _names(row: dict[str, Any]) -> str:
    return ", ".join(f'"{name}"' for name in row)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
