"""The folder for runs, checked before anything is made."""

import os
from pathlib import Path

from retroflow.errors import RetroflowError
from retroflow.store.disk import nearest_existing


def runs_folder_of(runs_folder: str) -> Path:
    """Return the folder for run folders, with `~` resolved."""
    return Path(os.path.expanduser(runs_folder))


def check_runs_folder(runs_folder: Path) -> None:
    """Check before preparing, and without making anything, whether runs can be written there.

    Raises:
        RetroflowError: the folder, or the nearest one above it that exists, cannot be written.
    """
    existing = nearest_existing(runs_folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "cannot be written" if existing.is_dir() else "is not a folder"
        raise RetroflowError(
            f"trainer.runs_folder '{runs_folder}': {existing} {reason}; choose a folder that can be written."
        )
