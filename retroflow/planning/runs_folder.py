"""The folder for runs, checked before anything is made."""

import os
from pathlib import Path

from retroflow.errors import RetroflowError
from retroflow.store.disk import why_not_writable


def runs_folder_of(runs_folder: str) -> Path:
    """Return the folder for run folders, with `~` resolved."""
    return Path(os.path.expanduser(runs_folder))


def check_runs_folder(runs_folder: Path) -> None:
    """Check before preparing, and without leaving anything, whether runs can be written there.

    Raises:
        RetroflowError: the folder, or the nearest one above it that exists, cannot be written.
    """
    absolute = runs_folder.absolute()
    existing = next(each for each in (absolute, *absolute.parents) if os.path.lexists(each))  # a link to nothing, too
    if not existing.is_dir():
        reason = "is not a folder"
    elif why := why_not_writable(existing):
        reason = f"cannot be written ({why})"
    else:
        return
    raise RetroflowError(
        f"trainer.runs_folder '{runs_folder}': {existing} {reason}; choose a folder that can be written."
    )
