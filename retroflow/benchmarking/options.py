"""Options of a benchmark."""

import re
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, MinLen

from retroflow.errors import UsageError
from retroflow.generation.arguments import ArgumentError
from retroflow.options import checked_options
from retroflow.planning.machine_memory import available_cores, main_memory

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_UNKNOWN = 1 << 62


@checked_options("", error=ArgumentError.of_complaints)
@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """How to measure retrievers.

    Attributes:
        k: neighbours to find.
        queries: number of queries; of a file or a database they are rows that are left out of the index.
        seconds: for the single queries of a setting, and again for its batches.
        threads: that libraries may use; all cores by default.
        memory_limit: refuse an index that takes more than this while it is built, such as 8GiB; what is free by
            default.
        seed: of what is drawn.
        dataset: its name in the HDF5 files; that of the vectors by default.
        output: folder of the results; one in `benchmarks` by default.
    """

    k: Annotated[int, Ge(1)] = 10
    queries: Annotated[int, Ge(1)] = 1_000
    seconds: Annotated[float, Gt(0)] = 10.0
    threads: Annotated[int, Ge(1)] | None = None
    memory_limit: str | None = None
    seed: Annotated[int, Ge(0)] = 0
    dataset: Annotated[str, MinLen(1)] | None = None
    output: Annotated[str, MinLen(1)] | None = None

    def __post_init__(self) -> None:
        if self.dataset is not None and not re.fullmatch(r"[\w.-]+", self.dataset):
            raise UsageError(f"dataset='{self.dataset}': give letters, digits, dots and dashes.")
        if self.memory_limit is not None:
            parse_bytes(self.memory_limit)

    @property
    def cores(self) -> int:
        """Threads to use."""
        return min(self.threads or available_cores(), available_cores())

    @property
    def memory(self) -> int:
        """Bytes that an index may take; where the system does not tell what is free, any number."""
        if self.memory_limit is not None:
            return parse_bytes(self.memory_limit)
        found = main_memory()
        return _UNKNOWN if found is None else found[1]


def parse_bytes(text: str) -> int:
    """Return the bytes that "8GiB", "8G" or "500M" means; units are powers of 1,024.

    Raises:
        UsageError: it is no such size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"memory_limit='{text}': give a size such as 8GiB or 500MiB.")
    return int(float(found[1]) * (1 << _UNITS[found[2].upper()]))


def parse_shape(text: str) -> tuple[int, int]:
    """Return N and D of "20000,384".

    Raises:
        UsageError: it is something else.
    """
    found = re.fullmatch(r"([1-9]\d*) ?, ?([1-9]\d*)", text.strip())
    if found is None:
        raise UsageError(f"random='{text}': give the number of vectors and their width, such as 20000,384.")
    return int(found[1]), int(found[2])
