"""Row files: what was measured of a row so far, token by token, so that it is never measured again.

`rows/NAME.npz` has sequences int64 [s], token_nats float32 [s, n] (0 where nothing is predicted) and seconds; and
`about`, a JSON text (store/sealed_arrays.py).

Shapes: s sequences that were measured so far, S of the row, n tokens of a sequence.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.protocols import Int64Array
from retroflow.store.sealed_arrays import read_arrays, write_arrays

ROWS_FOLDER = "rows"


@dataclass(frozen=True)
class RowFile:
    """A row, or the first sequences of one.

    Attributes:
        sequences: int64 [s], in the order in which they were measured.
        token_nats: float32 [s, n].
        seconds: that measuring took.
        setup_seconds: before the first sequence, over all starts.
        setup_forwards: tokens that went through the model before the first sequence, in the last start.
        forwards: the same while the sequences were measured.
        memory: largest number of bytes in use; None if it is not known.
        facts: of `rows.Measured`.
    """

    sequences: Int64Array
    token_nats: NDArray[np.float32]
    seconds: float = 0.0
    setup_seconds: float = 0.0
    setup_forwards: int = 0
    forwards: int = 0
    memory: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def row_path(folder: Path, name: str) -> Path:
    """Return the file of a row in the folder of a comparison."""
    return folder / ROWS_FOLDER / f"{name}.npz"


def write_row(path: Path, row: RowFile, made_of: str) -> None:
    """Write a row, whole or not at all.

    Args:
        path: its file.
        row: what was measured so far.
        made_of: fingerprint of all that its numbers depend on.

    Raises:
        RetroflowError: it cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {
        "sequences": np.asarray(row.sequences, np.int64),
        "token_nats": np.asarray(row.token_nats, np.float32),
        "seconds": np.array(row.seconds),
    }
    about = {
        "setup_seconds": row.setup_seconds,
        "setup_forwards": row.setup_forwards,
        "forwards": row.forwards,
        "memory": row.memory,
        "facts": row.facts,
    }
    write_arrays(path, arrays, about, made_of)


def read_row(path: Path, made_of: str) -> RowFile | None:
    """Read a row; None if there is none, if it was made of something else, or if it is damaged, which is said."""
    found = read_arrays(path, made_of)
    if found is None:
        return None
    arrays, about = found
    return RowFile(arrays["sequences"], arrays["token_nats"], float(arrays["seconds"]), **about)
