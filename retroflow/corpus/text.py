"""Documents from text files, one document per file.

corpus: {name: text, path: docs, include: "**/*.md"}
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Ge, MinLen

from retroflow.corpus.compressed import read_whole, refuse_other_format
from retroflow.corpus.documents import ValidShare
from retroflow.corpus.split_files import SplitFiles
from retroflow.errors import DamagedDataError
from retroflow.options import checked_options
from retroflow.protocols import Corpus, Counts, Document


@checked_options("corpus")
class TextCorpus(Corpus):
    """Documents from text files in UTF-8; a document's id and title are the file's name below `path`.

    Args:
        path: a folder, a file or a glob.
        include: glob of the files of a folder, relative to it: "**/*.md".
        valid_path: the same as `path` for the validation split; None splits `path` by a hash of the name.
        valid_share: share of the documents held out when there is no `valid_path`, 0 <= share < 1.
        max_document_bytes: the largest file that is accepted.

    Raises:
        UsageError: an option is out of range.
    """

    held_out_by: ClassVar[tuple[str, ...]] = ("valid_share", "valid_path")

    def __init__(
        self,
        *,
        path: Annotated[str, MinLen(1)],
        include: str = "**/*.txt",
        valid_path: Annotated[str, MinLen(1)] | None = None,
        valid_share: ValidShare = 0.05,
        max_document_bytes: Annotated[int, Ge(1)] = 67_108_864,
    ) -> None:
        self.files = SplitFiles(path=path, valid_path=valid_path, valid_share=valid_share, include=(include,))
        self.max_document_bytes = max_document_bytes
        self.counts = Counts()

    def documents(self) -> Iterator[Document]:
        """Stream the documents; see `Corpus.documents`.

        Raises:
            CorpusError: there is no file, or no text.
            DamagedDataError: a file is not UTF-8, or too large.
        """
        self.counts = Counts()
        return self.files.distinct(self._read(), self.counts)

    def fingerprint(self) -> dict[str, object]:
        """Return file contents and split; see `Corpus.fingerprint`."""
        return {"name": "text", "version": 1, **self.files.fingerprint()}

    def _read(self) -> Iterator[Document]:
        for file, split_of in self.files:
            text = _decode(read_whole(file.path, self.max_document_bytes), file.path)
            yield Document(file.name, file.name, text, file.name, split_of(file.name))


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse_other_format(path, content)
        line = content.count(b"\n", 0, error.start) + 1
        raise DamagedDataError(
            f"{path}:{line}: byte {error.start + 1} of the file (0x{content[error.start]:02x}) is not UTF-8. "
            "Convert the file to UTF-8, for example with iconv, or leave it out by corpus.include."
        ) from error
