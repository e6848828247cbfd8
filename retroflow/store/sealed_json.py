"""JSON files that contain the SHA-256 of their content, so that one changed digit is detected."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retroflow.errors import DamagedDataError, RetroflowError
from retroflow.store.atomic import canonical_json, write_file

SEAL = "sha256"


def strict_json(value: object, *, what: str, indent: int | None = None) -> str:
    """Render JSON values; NaN and infinities, which JSON does not have, are an error.

    Args:
        value: JSON values.
        what: name of the value in the error.
        indent: spaces per level, None for one line.

    Raises:
        RetroflowError: a number in it is not finite.
    """
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise RetroflowError(f"{what}: a number in it is NaN or infinite, which JSON cannot hold ({error}).") from error


def render_sealed(values: Mapping[str, Any], *, what: str) -> str:
    """Render an object with its SHA-256 as the last key.

    Raises:
        RetroflowError: a number in it is not finite.
    """
    body = {key: value for key, value in values.items() if key != SEAL}
    strict_json(body, what=what)
    return strict_json(body | {SEAL: _seal_of(body)}, what=what, indent=2) + "\n"


def read_sealed(path: Path, *, remedy: str) -> dict[str, Any]:
    """Read what `render_sealed` gave.

    Args:
        path: the file.
        remedy: a sentence that ends the error.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedDataError: it cannot be read, or is not what was written.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        body = {key: value for key, value in values.items() if key != SEAL}
        is_whole = values.get(SEAL) == _seal_of(body)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(*error.args) from error
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedDataError(f'"{path}": cannot be read ({type(error).__name__}: {error}). {remedy}') from error
    if not is_whole:
        reason = "its SHA-256 does not match" if SEAL in values else "its SHA-256 is not in it"
        raise DamagedDataError(f'"{path}": it was changed after it was written: {reason}. {remedy}')
    return body


def _seal_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body)).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write a small JSON file whole or not at all."""
    write_text(path, strict_json(value, what=str(path), indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a small text file whole or not at all.

    Raises:
        RetroflowError: the file cannot be written.
    """
    try:
        write_file(path, text.encode())
    except OSError as error:
        raise RetroflowError(f"{path}: cannot be written ({error}); free space or make the folder writable.") from error
