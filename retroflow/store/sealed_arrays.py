"""Arrays in one .npz file with the SHA-256 of their numbers, and JSON values beside them: caches of measurements."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.console import say
from retroflow.errors import RetroflowError
from retroflow.store.atomic import write_file

_ABOUT = "about"


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any], made_of: str) -> None:
    """Write arrays, whole or not at all.

    Args:
        path: the file; its folder is made.
        arrays: by name.
        about: JSON values.
        made_of: fingerprint of all that the numbers depend on.

    Raises:
        RetroflowError: the file cannot be written.
    """
    stream = io.BytesIO()
    text = json.dumps({"made_of": made_of, "sha256": _digest(arrays), "values": dict(about)})
    held: dict[str, Any] = {_ABOUT: np.array(text), **arrays}
    np.savez(stream, **held)
    write_numbers(path, stream.getvalue())


def write_numbers(path: Path, content: bytes) -> None:
    """Write a file of measurements, whole or not at all.

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


def read_arrays(path: Path, made_of: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
    """Read the arrays and the JSON values of a file.

    Returns:
        None if there is no such file, if it was made of something else, or if it is damaged, which is said.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(str(stored[_ABOUT]))
            if about["made_of"] != made_of:
                return None
            arrays = {name: stored[name] for name in stored.files if name != _ABOUT}
            if about["sha256"] == _digest(arrays):
                return arrays, about["values"]
            reason = "its SHA-256 does not match"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = f"{type(error).__name__}: {error}"
    say(f"{path}: damaged ({reason}); it is measured again")
    return None


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    whole = hashlib.sha256()
    for name in sorted(arrays):
        whole.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return whole.hexdigest()
