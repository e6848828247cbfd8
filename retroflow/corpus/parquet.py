"""Documents from Parquet files, one document per row, read in small batches.

corpus: {name: parquet, path: "data/*.parquet", text_key: content}
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, MinLen

from retroflow.corpus.compressed import require
from retroflow.corpus.documents import TextColumns, ValidShare
from retroflow.corpus.files import FoundFile
from retroflow.corpus.split_files import SplitFiles
from retroflow.errors import CorpusError, DamagedDataError
from retroflow.options import checked_options
from retroflow.protocols import Corpus, Counts, Document

if TYPE_CHECKING:
    import pyarrow

# Rows in memory at a time. Rows are documents: a few dozen large ones already need much memory.
BATCH_ROWS = 64


@checked_options("corpus")
class ParquetCorpus(Corpus):
    """Documents from the rows of Parquet files.

    Args:
        path: a file, a folder (all .parquet below it) or a glob.
        valid_path: the same for the validation split; None splits `path` by a hash of the document id.
        valid_share: share of the documents held out when there is no `valid_path`, 0 <= share < 1.
        text_key: column of the text.
        id_key: column of the id, strings or whole numbers; without the column "id" the id is `file:row`.
        title_key: column of the title; without the column "title" the id is the title.
        max_document_bytes: the longest text that is accepted.

    Raises:
        UsageError: an option is out of range.
        MissingExtraError: pyarrow is not installed.
    """

    held_out_by: ClassVar[tuple[str, ...]] = ("valid_share", "valid_path")

    def __init__(
        self,
        *,
        path: Annotated[str, MinLen(1)],
        valid_path: Annotated[str, MinLen(1)] | None = None,
        valid_share: ValidShare = 0.05,
        text_key: str = "text",
        id_key: str = "id",
        title_key: str = "title",
        max_document_bytes: Annotated[int, Ge(1)] = 67_108_864,
    ) -> None:
        require("pyarrow", extra="parquet", purpose="corpus.name=parquet")
        self.files = SplitFiles(path=path, valid_path=valid_path, valid_share=valid_share, include=("**/*.parquet",))
        self.columns = TextColumns(text_key, id_key, title_key, max_document_bytes)
        self.counts = Counts()

    def documents(self) -> Iterator[Document]:
        """Stream the documents; see `Corpus.documents`.

        Raises:
            CorpusError: there is no file or no text, or a column is missing or of a wrong type.
            DamagedDataError: a file is not Parquet or is damaged, or a row has no text; the message has file and row.
        """
        self.counts = Counts()
        return self.files.distinct(self._read(), self.counts)

    def fingerprint(self) -> dict[str, object]:
        """Return options and file contents; see `Corpus.fingerprint`."""
        return {"name": "parquet", "version": 1, "keys": self.columns.keys, **self.files.fingerprint()}

    def _read(self) -> Iterator[Document]:
        columns = self.columns
        for file, split_of in self.files:
            for row, values in self._read_rows(file):
                place, text = f"{file.path}: row {row}", values[columns.text]
                if text is None:
                    raise DamagedDataError(
                        f'{place}: "{columns.text}" is null, allowed is a string. Remove or fill the row.'
                    )
                found = text, values.get(columns.id), values.get(columns.title)
                yield columns.document(found, name=f"{file.name}:{row}", place=place, split_of=split_of)

    def _read_rows(self, file: FoundFile) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (row from 1, value of each column) of one file."""
        import pyarrow
        from pyarrow import parquet

        row = 0
        try:
            # Without pre-buffering a row group is read page by page.
            with parquet.ParquetFile(file.path, pre_buffer=False, buffer_size=1 << 20) as table:
                columns = self._columns(table.schema_arrow, file)
                for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                    for place in range(batch.num_rows):  # one row after the other: they may be large
                        row += 1
                        yield row, {name: batch.column(name)[place].as_py() for name in columns}
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DamagedDataError(
                f"{file.path}: not Parquet, or damaged after row {row} ({str(error).splitlines()[0]}). "
                "Download or write it again."
            ) from error

    def _columns(self, schema: "pyarrow.Schema", file: FoundFile) -> list[str]:
        """Return the columns to read, the text first; checks that they exist and have a usable type."""
        from pyarrow import types

        present = ", ".join(f'"{field.name}" ({field.type})' for field in schema)
        chosen = []
        for option, name, default in (
            ("text_key", self.columns.text, None),
            ("id_key", self.columns.id, "id"),
            ("title_key", self.columns.title, "title"),
        ):
            if name not in schema.names:
                if name == default:
                    continue
                raise CorpusError(
                    f'corpus.{option}: {file.path} has no column "{name}"; its columns: {present}. Name one of them.'
                )
            kind = schema.field(name).type
            kind = kind.value_type if types.is_dictionary(kind) else kind
            is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
            if not is_text and not (option == "id_key" and types.is_integer(kind)):
                raise CorpusError(
                    f'corpus.{option}: column "{name}" of {file.path} holds {kind}, allowed are strings; '
                    f"its columns: {present}. Name another."
                )
            chosen.append(name)
        return chosen
