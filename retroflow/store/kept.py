"""Folders that a library writes into an artifact in the making (tokenizer, embedder, index), kept from run to run."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from retroflow.store.artifact import KEPT_FOLDER
from retroflow.store.atomic import canonical_json, sync_tree, write_file
from retroflow.store.hashing import describe_tree, first_difference
from retroflow.store.manifest import FileEntry


def kept_folder(
    partial: Path, name: str, save: Callable[[Path], None], basis: Mapping[str, Any] | None = None
) -> dict[str, FileEntry]:
    """Return the manifest entries of a subfolder that an earlier run finished, filled now if it is not as it was.

    Args:
        partial: the artifact in the making.
        name: the subfolder's.
        save: fills it; called with an empty folder.
        basis: JSON values that it depends on and the artifact's name does not say; filled again if they are others.
    """
    marker = partial / KEPT_FOLDER / f"{name}.json"
    try:
        values: Mapping[str, Any] = json.loads(marker.read_bytes())
        entries = {path: FileEntry.from_json(entry) for path, entry in values["files"].items()}
        present = {f"{name}/{path.relative_to(partial / name).as_posix()}" for path in _files(partial / name)}
        sizes_match = all(os.stat(partial / path).st_size == entry.num_bytes for path, entry in entries.items())
        is_same = values["basis"] == (basis or {}) and present == set(entries) and sizes_match
        if is_same and not first_difference(partial, entries.items()):
            return entries
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    shutil.rmtree(partial / name, ignore_errors=True)
    (partial / name).mkdir(parents=True)
    save(partial / name)
    sync_tree(partial / name)
    entries = describe_tree(partial / name, name)
    marker.parent.mkdir(exist_ok=True)
    files = {path: entry.to_json() for path, entry in entries.items()}
    write_file(marker, canonical_json({"basis": basis or {}, "files": files}))
    return entries


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
