"""The description of a saved index, and checks of its files.

Native readers trust the lengths in a file and follow links, so both are checked before one is called.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.errors import DamagedDataError

FORMAT_VERSION = 3
DESCRIPTION_FILE = "retriever.json"
BACKEND_FOLDER = "backend"


def read_description(path: Path) -> dict[str, Any]:
    """Read retriever.json; refuse one that is missing, damaged or of another format."""
    remedy = "Delete the artifact and run `retroflow prepare` again."
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version = description["format_version"]
        sound = (
            isinstance(description["owner"], str)
            and isinstance(description["metric"], str)
            and (description["dimension"] is None or type(description["dimension"]) is int)
            and type(description["next_id"]) is int
            and description["dimension"] != 0
            and description["next_id"] >= 0
            and _are_ranges(description["removed"], description["next_id"])
            and isinstance(description["crc32"], dict)
        )
    except FileNotFoundError as error:
        raise DamagedDataError(f'"{path}" is missing, so the folder holds no complete index. {remedy}') from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedDataError(f'"{path}" is not the description of an index: {error}. {remedy}') from error
    if version != FORMAT_VERSION:
        raise DamagedDataError(
            f'"{path}" has format version {version!r}, and this retroflow reads {FORMAT_VERSION}. {remedy}'
        )
    if not sound:
        raise DamagedDataError(f'"{path}" has impossible values. {remedy}')
    return dict(description)


def ranges_of(chosen: NDArray[np.bool_]) -> list[list[int]]:
    """Return the ids that are True in an array [n], as ranges [first, after the last]: documents are ranges of ids."""
    edges = np.flatnonzero(np.diff(chosen.astype(np.int8), prepend=0, append=0))
    ranges: list[list[int]] = edges.reshape(-1, 2).tolist()
    return ranges


def without(removed: list[list[int]], next_id: int) -> NDArray[np.bool_] | None:
    """Return bool [n], False in these ranges of ids; None where there are none."""
    live = np.ones(next_id, bool)
    for start, stop in removed:
        live[start:stop] = False
    return live if removed else None


def _are_ranges(ranges: Any, next_id: int) -> bool:
    """Return whether they are as `ranges_of` makes them."""
    edges = [edge for start, stop in ranges for edge in (start, stop)]
    return all(type(edge) is int and 0 <= edge <= next_id for edge in edges) and edges == sorted(set(edges))


def checksums(folder: Path) -> dict[str, int]:
    """Return the CRC-32 of every file below folder, to detect damage before native readers do."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _crc32(path) for path in files}


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            checksum = zlib.crc32(block, checksum)
    return checksum


def fault_of_files(folder: Path) -> str | None:
    """Return what in an index folder would break when it is moved, such as links, or None."""
    others = sorted(path.name for path in folder.iterdir() if path.name != BACKEND_FOLDER)
    if others:
        return f'it wrote "{others[0]}" beside the folder that it was given'
    for path in sorted((folder / BACKEND_FOLDER).rglob("*")):
        if path.is_symlink():
            return f'"{path.name}" is a link (to "{path.readlink()}")'
        if not path.is_file() and not path.is_dir():
            return f'"{path.name}" is neither a file nor a folder'
    return None
