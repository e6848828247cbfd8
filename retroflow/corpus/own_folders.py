"""Folders that retroflow makes (runs, artifacts and exported models), whose files are not documents.

A corpus may be the folder in which retroflow runs (`corpus.path=.`), where these appear while the corpus is read.
"""

import os
import re
from collections.abc import Container

from retroflow.store.artifact import LOCKS_FOLDER
from retroflow.store.manifest import MANIFEST_NAME, NAME

ARTIFACT = re.compile(rf"({NAME})(?:\.partial|\.pieces|\.removed)?")


def is_own_folder(folder: str, names: Container[str]) -> bool:
    """Return whether a folder is a run, an artifact (finished or unfinished) or an exported model of retroflow.

    Args:
        folder: its path.
        names: of its content.
    """
    if "recipe.yaml" in names and ("run.json" in names or "metrics.jsonl" in names):
        return True
    if "retroflow.json" in names and "config.json" in names:
        return True
    artifact = ARTIFACT.fullmatch(os.path.basename(folder))
    if artifact is None:
        return False
    # An unfinished one has no manifest yet; it is made under a lock.
    lock = os.path.join(os.path.dirname(folder), LOCKS_FOLDER, f"{artifact[1]}.lock")
    return MANIFEST_NAME in names or os.path.exists(lock)
