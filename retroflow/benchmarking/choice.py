"""Which index to use for N vectors of width D in so much memory, and why.

Shapes: N vectors, D their width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from retroflow.components import create_retriever, retriever_section
from retroflow.errors import MissingExtraError, RetroflowError
from retroflow.planning.memory_estimate import size_text
from retroflow.store.disk import disk_size

FEW_VECTORS = 10_000
"""Below it exact search takes less than a millisecond; `retroflow.retrieval.faiss_choices.auto_factory` has it, too."""

MANY_VECTORS = 1_000_000
"""From here on a graph takes long to build: docs/benchmarks/2026-11-27-retrievers.md."""


@dataclass(frozen=True)
class Option:
    """An index that could be used.

    Attributes:
        word: as for `--retriever`.
        kind: of index; or why there is none.
        building, searching, disk: bytes, None if unknown.
        fits: whether it fits into memory while it is built.
        why: in favour of or against it.
    """

    word: str
    kind: str
    building: int | None
    searching: int | None
    disk: int | None
    fits: bool
    why: str


@dataclass(frozen=True)
class Choice:
    """The options, and the one to use.

    Attributes:
        count, dimension: N and D.
        memory: bytes that an index may take.
        options: all that were considered.
        chosen: the word of one.
    """

    count: int
    dimension: int
    memory: int
    options: list[Option]
    chosen: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        options: list[Mapping[str, Any]] = [vars(option) for option in self.options]
        return {
            "vectors": self.count,
            "dimension": self.dimension,
            "memory": self.memory,
            "chosen": self.chosen,
            "options": options,
        }

    def render(self) -> Group:
        """Return a table for rich."""
        title = f"{self.count:,} vectors of width {self.dimension}, {size_text(self.memory)} of memory"
        table = Table(title=title, title_justify="left")
        for column in ("", "retriever", "index", "memory building", "searching", "disk", "why"):
            table.add_column(column, justify="right" if column in ("memory building", "searching", "disk") else "left")
        for option in self.options:
            sizes = [option.building, option.searching]
            shown = ["" if size is None else size_text(size) for size in sizes]
            disk = "" if option.disk is None else disk_size(option.disk)
            mark = "*" if option.word == self.chosen else ""
            table.add_row(mark, option.word, option.kind, *shown, disk, option.why)
        return Group(table, Text(f"* chosen: {self.chosen}. Bytes are estimates."))


def choose_index(count: int, dimension: int, memory: int) -> Choice:
    """Choose an index: the first of these that is installed and fits into memory while it is built.

    1. Exact search below 10,000 vectors (faiss wiki, "Guidelines to choose an index": few vectors need none).
    2. A graph by hnswlib below a million vectors: the highest recall at small k (docs/retrievers.md); autofaiss 2.18
       prefers a graph wherever it fits, too.
    3. What faiss's `auto` makes of N and D: `retroflow.retrieval.faiss_choices.auto_factory`.
    4. Inverted lists of float16, which stay on disk: their memory grows with the square root of N.

    Args:
        count, dimension: N and D.
        memory: bytes that an index may take.
    """
    lists = 16_384 if count >= MANY_VECTORS else 1_024
    words = {
        "exact": (count < FEW_VECTORS, "no index; for few vectors, and as a reference"),
        "hnsw": (FEW_VECTORS <= count < MANY_VECTORS, "the highest recall at small k; slow to build"),
        "faiss": (count >= FEW_VECTORS, "fast to build, small"),
        f"faiss:build.factory=IVF{lists},SQfp16": (count >= FEW_VECTORS, "lists stay on disk: the least memory"),
        "scann": (False, "if your serving uses ScaNN; builds cannot be repeated exactly"),
    }
    options = [_option(word, why, (count, dimension), memory) for word, (_, why) in words.items()]
    usable = [option.word for option in options if option.fits and words[option.word][0]]
    return Choice(count, dimension, memory, options, usable[0] if usable else "exact")


def _option(word: str, why: str, shape: tuple[int, int], memory: int) -> Option:
    try:
        retriever = create_retriever(retriever_section(word, "retriever"))
        retriever.check_vectors(*shape)
        outline = retriever.outline(*shape)
    except MissingExtraError as error:
        return Option(word, "not installed", None, None, None, False, str(error))
    except RetroflowError as error:
        return Option(word, "not possible", None, None, None, False, str(error))
    assert outline is not None
    fits = outline.building <= memory
    reason = why if fits else f"too large while it is built; {why}"
    return Option(word, outline.kind, outline.building, outline.searching, outline.disk, fits, reason)
