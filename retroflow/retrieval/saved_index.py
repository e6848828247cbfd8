"""The description of a saved index, and checks of its files.

Native readers trust the lengths in a file and follow links, so both are checked before one is called.
"""

import json
import zlib
from pathlib import Path
from typing import Any

from retroflow.errors import DamagedDataError

FORMAT_VERSION = 2
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
            and type(description["count"]) is int
            and description["dimension"] != 0
            and description["count"] >= 0
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
