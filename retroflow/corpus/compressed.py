"""Open plain, gzip and Zstandard files as a stream of bytes, and detect damaged ones."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from retroflow.corpus.files import unreadable
from retroflow.errors import DamagedDataError, MissingExtraError

# A Zstandard block of 4 bytes may decompress to 128 KiB, so 2 KiB of input give at most 64 MiB.
ZSTD_FEED_BYTES = 2048

# First bytes of files that are often mistaken for text, and what to do with them.
OTHER_FORMATS = {
    b"\x1f\x8b": ("gzip", "Rename it to end in .gz."),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "Rename it to end in .zst."),
    b"BZh": ("bzip2", "Unpack it first."),
    b"\xfd7zXZ\0": ("xz", "Unpack it first."),
    b"PK\x03\x04": ("a zip archive", "Unpack it first."),
    b"PAR1": ("Parquet", "Read it with corpus.name=parquet."),
    b"\xff\xfe": ("UTF-16", "Convert it: iconv -f UTF-16 -t UTF-8."),
    b"\xfe\xff": ("UTF-16", "Convert it: iconv -f UTF-16 -t UTF-8."),
}


def require(module: str, *, extra: str, purpose: str) -> None:
    """Check that an optional library is installed, without importing it.

    Raises:
        MissingExtraError: it is not; the message has the pip command.
    """
    try:
        present = find_spec(module) is not None
    except ValueError:  # raised by find_spec for a module that is blocked in sys.modules
        present = False
    if not present:
        raise MissingExtraError(f'{purpose} needs {module}, which is not installed: pip install "retroflow[{extra}]"')


class ZstdReader(io.RawIOBase):
    """Decompress Zstandard frames, and raise EOFError if the last one is truncated.

    The library's own stream reader does not notice a truncated file.
    """

    def __init__(self, stream: BinaryIO) -> None:
        import zstandard

        self._stream = stream
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._pending = b""

    def readable(self) -> bool:
        """Return True, for io.BufferedReader."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer with decompressed bytes; 0 at the end."""
        while not self._pending:
            feed = self._stream.read(ZSTD_FEED_BYTES)
            if not feed:
                if self._frame is not None:
                    raise EOFError("the last frame is cut short")
                return 0
            self._pending = self._decompress(feed)
        piece = self._pending[: len(buffer)]
        buffer[: len(piece)] = piece
        self._pending = self._pending[len(piece) :]
        return len(piece)

    def _decompress(self, feed: bytes) -> bytes:
        pieces = []
        while feed:
            frame = self._frame or self._decompressor.decompressobj()
            pieces.append(frame.decompress(feed))
            feed, self._frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        return b"".join(pieces)


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a file for reading bytes, decompressed according to its ending (.gz, .zst, else unchanged).

    Raises:
        CorpusError: it cannot be read.
        DamagedDataError: compressed data is truncated or changed (raised in the body, while the bytes are read).
        MissingExtraError: a .zst file, but the library is not installed.
    """
    try:
        with path.open("rb") as stream:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=stream) as unzipped:
                    yield unzipped
            elif path.suffix == ".zst":
                require("zstandard", extra="zstd", purpose=f"{path}: reading .zst")
                with _zstd_errors():
                    yield io.BufferedReader(ZstdReader(stream), buffer_size=1 << 17)
            else:
                yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedDataError(
            f"{path}: the compressed file is damaged or cut short ({error}). Download or copy it again; "
            f"{'zstd' if path.suffix == '.zst' else 'gzip'} -t checks it."
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


@contextmanager
def _zstd_errors() -> Iterator[None]:
    import zstandard

    try:
        yield
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from error


def read_lines(path: Path, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line without its end) of a file, with at most `max_bytes` in memory.

    A byte order mark is removed. Blank lines are skipped but counted.

    Raises:
        DamagedDataError: a line is longer; the message has its number and length.
    """
    with open_bytes(path) as stream:
        number = 0
        while line := stream.readline(max_bytes + 1):
            number += 1
            if len(line) > max_bytes and not line.endswith(b"\n"):
                raise too_long(f"{path}:{number}", len(line) + _rest_of_line(stream), max_bytes)
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            line = line.rstrip(b"\r\n")
            if line and not line.isspace():
                yield number, line


def read_whole(path: Path, max_bytes: int) -> bytes:
    """Read a file that is one document, with at most `max_bytes` in memory.

    Raises:
        DamagedDataError: the file is longer.
    """
    with open_bytes(path) as stream:
        content = stream.read(max_bytes + 1)
        if len(content) > max_bytes:
            size = len(content)
            while block := stream.read(1 << 20):
                size += len(block)
            raise too_long(str(path), size, max_bytes)
    return content


def refuse_other_format(path: Path, content: bytes) -> None:
    """Refuse a file whose first bytes show that it is not plain text.

    Args:
        path: the file, for the message.
        content: its first bytes.

    Raises:
        DamagedDataError: it is compressed, Parquet or UTF-16.
    """
    for first, (kind, remedy) in OTHER_FORMATS.items():
        if content.startswith(first):
            raise DamagedDataError(f"{path}: by its first bytes this is {kind}, not text in UTF-8. {remedy}")


def too_long(place: str, num_bytes: int, max_bytes: int) -> DamagedDataError:
    """Return the error for a document above `max_document_bytes`."""
    return DamagedDataError(
        f"{place}: a document of {num_bytes:,} bytes, allowed are {max_bytes:,} (corpus.max_document_bytes). "
        "Split it into several documents, or raise corpus.max_document_bytes if the memory is there."
    )


def _rest_of_line(stream: io.BufferedIOBase) -> int:
    num_bytes = 0
    while block := stream.readline(1 << 20):
        num_bytes += len(block)
        if block.endswith(b"\n"):
            return num_bytes - 1
    return num_bytes
