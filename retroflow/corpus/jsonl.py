"""Documents from JSON Lines files, plain, .gz or .zst: `{"id": ..., "text": ..., "meta": {"title": ...}}` per line.

corpus: {name: jsonl, path: data/train.jsonl.gz, valid_path: data/valid.jsonl.gz}
"""

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, MinLen

from retroflow.corpus.compressed import read_lines, refuse_other_format, require
from retroflow.corpus.documents import TextColumns, ValidShare
from retroflow.corpus.files import FoundFile
from retroflow.corpus.split_files import SplitFiles
from retroflow.errors import DamagedDataError
from retroflow.options import checked_options
from retroflow.protocols import Corpus, Counts, Document, Split

INCLUDE = ("**/*.jsonl", "**/*.jsonl.gz", "**/*.jsonl.zst")
DEFAULT_ID_KEY = "id"


@checked_options("corpus")
class JsonlCorpus(Corpus):
    """Documents from JSON Lines files.

    Args:
        path: a file, a folder (all .jsonl, .jsonl.gz and .jsonl.zst below it) or a glob.
        valid_path: the same for the validation split; None splits `path` by a hash of the document id.
        valid_share: share of the documents held out when there is no `valid_path`, 0 <= share < 1.
        text_key: key of the text, with dots for nested objects (`content.body`).
        id_key: key of the id, a string or whole number; without the key "id" the id is `file:line`.
        title_key: key of the title; if it is missing, the id is the title.
        max_document_bytes: the longest line that is accepted.

    Raises:
        UsageError: an option is out of range.
        MissingExtraError: `path` ends in .zst and zstandard is not installed.
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
        title_key: str = "meta.title",
        max_document_bytes: Annotated[int, Ge(1)] = 67_108_864,
    ) -> None:
        self.files = SplitFiles(path=path, valid_path=valid_path, valid_share=valid_share, include=INCLUDE)
        if self.files.mention(".zst"):
            require("zstandard", extra="zstd", purpose="corpus.path: reading .zst")
        self.columns = TextColumns(text_key, id_key, title_key, max_document_bytes)
        self.counts = Counts()

    def documents(self) -> Iterator[Document]:
        """Stream the documents; see `Corpus.documents`.

        Raises:
            CorpusError: there is no file, or no document.
            DamagedDataError: a line is not a document; the message has file and line.
        """
        self.counts = Counts()
        return self.files.distinct(self._read(), self.counts)

    def fingerprint(self) -> dict[str, object]:
        """Return options and file contents; see `Corpus.fingerprint`."""
        return {"name": "jsonl", "version": 1, "keys": self.columns.keys, **self.files.fingerprint()}

    def _read(self) -> Iterator[Document]:
        for file, split_of in self.files:
            yield from self._read_file(file, split_of)

    def _read_file(self, file: FoundFile, split_of: Callable[[str], Split]) -> Iterator[Document]:
        columns = self.columns
        for number, line in read_lines(file.path, columns.max_bytes):
            place, name = f"{file.path}:{number}", f"{file.name}:{number}"
            record = parse_object(line, file.path, number)
            text, id, title = (_look_up(record, key) for key in columns.keys)
            if not isinstance(text, str):
                raise DamagedDataError(_wrong_text(record, columns.text, text, place))
            is_missing = id is None and columns.id == DEFAULT_ID_KEY
            if not is_missing and (not isinstance(id, str | int) or isinstance(id, bool)):
                raise DamagedDataError(
                    f'{place}: "{columns.id}" is {_kind(id)}, allowed are a string or a whole number. '
                    "Correct the line, or name another key in corpus.id_key."
                )
            yield columns.document((text, id, title), name=name, place=place, split_of=split_of)


class _Refused(ValueError):
    """Content that Python accepts silently, although it is not JSON or other readers understand it differently."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Refused(f'the key "{twice}" is given twice. Remove the one that is not meant.')
    return values


def _refuse_constant(name: str) -> Any:
    raise _Refused(f"{name} is not JSON. Write null, or leave the key out.")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)


def read_objects(path: Path, max_bytes: int = 1 << 26) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place ("file:line") and content of every line, a JSON object; raises as `JsonlCorpus.documents`."""
    for number, line in read_lines(path, max_bytes):
        yield f"{path}:{number}", parse_object(line, path, number)


def parse_object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """Parse a line of a file.

    Raises:
        DamagedDataError: it is not a JSON object; the message has file and line.
    """
    place = f"{path}:{number}"
    try:
        record = _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        if number == 1:
            refuse_other_format(path, line)
        raise DamagedDataError(
            f"{place}: byte {error.start + 1} of the line (0x{line[error.start]:02x}) is not UTF-8. "
            "Convert the file to UTF-8, for example with iconv."
        ) from error
    except _Refused as error:
        raise DamagedDataError(f"{place}: {error}") from error
    except (ValueError, RecursionError) as error:
        if number == 1:
            refuse_other_format(path, line)
        raise DamagedDataError(f"{place}: not JSON ({error}). {_remedy(line, path)}") from error
    if not isinstance(record, dict):
        raise DamagedDataError(f"{place}: the line is {_kind(record)}, allowed is an object. {_remedy(line, path)}")
    return record


def _remedy(line: bytes, path: Path) -> str:
    """Return what to do about a line that is not an object, by what the file seems to be."""
    if path.suffix in (".csv", ".tsv"):
        return "Convert the table to JSON Lines or Parquet; corpus.name=datasets reads a folder of CSV files."
    if path.suffix not in (".json", ".jsonl", ".ndjson", ".gz", ".zst"):
        return "If it is plain text, one document per file, read it with corpus.name=text."
    quoted = shlex.quote(str(path))
    if line.startswith(b"["):
        return f"An array is made into one object a line with: jq -c '.[]' {quoted} > lines.jsonl"
    if line == b"{":
        return f"Objects over several lines are put into a line each with: jq -c . {quoted} > lines.jsonl"
    return 'Each line must be one object such as {"id": "a", "text": "..."}.'


def _look_up(record: dict[str, Any], key: str) -> Any:
    if key in record:
        return record[key]
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _wrong_text(record: dict[str, Any], key: str, value: object, place: str) -> str:
    if value is None and key not in record:
        keys = ", ".join(f'"{present}"' for present in list(record)[:12]) or "none"
        return f'{place}: the object lacks "{key}"; its keys: {keys}. Name the key of the text in corpus.text_key.'
    return (
        f'{place}: "{key}" is {_kind(value)}, allowed is a string. '
        "Correct the line, or name another key in corpus.text_key."
    )


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
