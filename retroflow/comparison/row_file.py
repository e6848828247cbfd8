"""Row files: what was measured of a row so far, token by token, so that it is never measured again.

`rows/NAME.npz` has sequences int64 [s], token_nats float32 [s, n] (0 where nothing is predicted) and seconds; and
`about`, a JSON text with what the row was made of and the SHA-256 of the numbers.

Shapes: s sequences that were measured so far, S of the row, n tokens of a sequence.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.console import say
from retroflow.errors import RetroflowError
from retroflow.protocols import Int64Array
from retroflow.store.atomic import write_file

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

    @property
    def _about(self) -> dict[str, Any]:
        values = asdict(self)
        return {key: values[key] for key in ("setup_seconds", "setup_forwards", "forwards", "memory", "facts")}

    @property
    def _digest(self) -> str:
        parts = (np.int64(self.sequences), np.float32(self.token_nats), np.float64(self.seconds))
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


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
    stream = io.BytesIO()
    about = json.dumps({"made_of": made_of, "sha256": row._digest, **row._about})
    np.savez(
        stream,
        sequences=np.int64(row.sequences),
        token_nats=np.float32(row.token_nats),
        seconds=np.float64(row.seconds),
        about=np.array(about),
    )
    write_numbers(path, stream.getvalue())


def write_numbers(path: Path, content: bytes) -> None:
    """Write a file of a comparison, whole or not at all.

    Raises:
        RetroflowError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
    except OSError as error:
        raise RetroflowError(
            f"{path}: cannot be written ({error}); free space, or give another folder with output='FOLDER'."
        ) from error


def read_row(path: Path, made_of: str) -> RowFile | None:
    """Read a row; None if there is none, if it was made of something else, or if it is damaged, which is said."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            wanted = about.pop("sha256")
            if about.pop("made_of") != made_of:
                return None
            row = RowFile(stored["sequences"], stored["token_nats"], float(stored["seconds"]), **about)
            if row._digest == wanted and len(row.sequences) == len(row.token_nats):
                return row
            reason = "its SHA-256 does not match"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = f"{type(error).__name__}: {error}"
    say(f"{path}: damaged ({reason}); the row is measured again")
    return None
