"""States of neighbours on disk, so that a process that starts again need not compute them.

    store.json               which base, layers and length they are of
    <key>.safetensors        the states of one neighbour, with their SHA-256

Files are memory-mapped. When the folder has reached its bound, those that were not used for longest are deleted.

Shapes: L reading layers, g heads of keys, t tokens of a neighbour, h features of a head.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from retroflow.console import say
from retroflow.errors import DamagedDataError, RetroflowError, UsageError
from retroflow.store.atomic import canonical_json, write_file

_DESCRIPTION = "store.json"
_SUFFIX = ".safetensors"
_GIB = 1 << 30


class StateStore:
    """Opens a folder of states, or makes it.

    Args:
        folder: new, empty, or such a store.
        made_of: JSON values that all its states have in common.
        most_bytes: its bound.

    Raises:
        UsageError: the folder holds something else, or states that were made of something else.
        RetroflowError: it cannot be written.
    """

    def __init__(self, folder: Path, made_of: Mapping[str, Any], most_bytes: int) -> None:
        self._folder, self._most_bytes, self._lock = folder, most_bytes, threading.Lock()
        try:
            self._open(canonical_json(dict(made_of)))
            files = [(path.stat(), path.name) for path in folder.glob(f"*{_SUFFIX}")]
        except OSError as error:
            raise RetroflowError(f'model.neighbour_store: "{folder}" cannot be used ({error}).') from error
        self._sizes = OrderedDict(
            (name, found.st_size) for found, name in sorted(files, key=lambda one: one[0].st_mtime)
        )
        say(
            f"neighbour store {folder}: {len(files):,} neighbours, {self._num_bytes / _GIB:.2f} GiB now, at most "
            f"{most_bytes / _GIB:.2f} GiB (model.neighbour_store_gib)"
        )

    @property
    def _num_bytes(self) -> int:
        return sum(self._sizes.values())

    def _open(self, description: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / _DESCRIPTION
        if not file.exists() and any(self._folder.iterdir()):
            raise UsageError(
                f'model.neighbour_store: "{self._folder}" holds other files and no {_DESCRIPTION}. Give a new folder.'
            )
        if not file.exists():
            write_file(file, description)
        elif file.read_bytes() != description:
            raise UsageError(
                f'model.neighbour_store: "{self._folder}" holds states of another base, other layers or another length '
                "of chunks. Give another folder, or delete this one."
            )

    def read(self, key: object) -> Tensor | None:
        """Return a state float [L, 2, g, t, h], None if it is not here.

        Args:
            key: JSON values, as they were given to `write`.

        Raises:
            DamagedDataError: its file is not what was written.
        """
        path = self._folder / _name_of(key)
        try:
            with safe_open(path, "pt") as file:
                state: Tensor = file.get_tensor("states")
                wanted = (file.metadata() or {}).get("sha256")
            os.utime(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
        if _digest(state) != wanted:
            raise _damaged(path, "its SHA-256 does not match")
        with self._lock:
            self._sizes[path.name] = path.stat().st_size if path.exists() else 0
            self._sizes.move_to_end(path.name)
        return state

    def write(self, key: object, state: Tensor) -> None:
        """Keep a state float [L, 2, g, t, h] of a key as for `read`, and delete the oldest ones beyond the bound.

        Raises:
            RetroflowError: it cannot be written.
        """
        content = save({"states": state.cpu()}, {"sha256": _digest(state)})
        path = self._folder / _name_of(key)
        if len(content) > self._most_bytes:
            return
        try:
            write_file(path, content)
            with self._lock:
                self._sizes[path.name] = len(content)
                while self._num_bytes > self._most_bytes:
                    oldest, _ = self._sizes.popitem(last=False)
                    (self._folder / oldest).unlink(missing_ok=True)
        except OSError as error:
            raise RetroflowError(
                f"{path}: cannot be written ({error}); free space, or leave out model.neighbour_store."
            ) from error


def _name_of(key: object) -> str:
    return hashlib.sha256(canonical_json(key)).hexdigest()[:40] + _SUFFIX


def _digest(state: Tensor) -> str:
    return hashlib.sha256(state.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()


def _damaged(path: Path, reason: object) -> DamagedDataError:
    return DamagedDataError(f"{path}: damaged ({reason}). Delete it; it is computed again.")
