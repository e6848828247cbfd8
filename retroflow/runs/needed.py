"""Find the artifacts that runs, exported models and recipes need."""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from retroflow.components import recipe_schema
from retroflow.errors import DamagedDataError, UsageError
from retroflow.pipeline.preview import preview
from retroflow.recipe import load
from retroflow.runs.description import EXPORT_FILE, read_run
from retroflow.runs.folder import RunFolder
from retroflow.runs.origin import read_origin
from retroflow.runs.overview import find_runs, is_empty_run
from retroflow.store.held import is_held
from retroflow.store.manifest import read_manifest

NEW_RUN_SECONDS = 60.0
"""Seconds; an empty run folder may belong to a run that is just beginning."""


def is_abandoned(run: Path) -> bool:
    """Return whether nothing was trained in a run and no process has worked on it for a minute."""
    return (
        is_empty_run(run)
        and not run.is_symlink()
        and not is_held(run / ".lock")
        and time.time() - max(path.lstat().st_mtime for path in (run, *run.rglob("*"))) > NEW_RUN_SECONDS
    )


def names_for_runs(runs: Iterable[Path]) -> set[str]:
    """Return the names of the artifacts of runs, except abandoned ones.

    Raises:
        UsageError: a run does not name its artifacts.
        DamagedDataError: a run.json is not of fit.
    """
    names = set()
    for run in runs:
        if RunFolder(run).description.exists():
            fingerprints = read_run(run).fingerprints  # of an abandoned run, too: a damaged one is not touched
            if not is_abandoned(run):
                names |= {f"{kind}-{fingerprint}" for kind, fingerprint in fingerprints.items()}
        elif not is_empty_run(run):
            raise UsageError(
                f'"{run}": it has no run.json, so the artifacts that it needs are unknown. Restore it, or move '
                "the folder away."
            )
    return names


def names_for_exports(folders: Iterable[Path]) -> set[str]:
    """Return the names of the artifacts of exported models in these folders, or directly below.

    Raises:
        DamagedDataError: one was changed after it was exported.
    """
    names = set()
    for file in (file for folder in folders for depth in ("", "*/") for file in folder.glob(depth + EXPORT_FILE)):
        names |= {f"{kind}-{fingerprint}" for kind, fingerprint in read_origin(file.parent).fingerprints.items()}
    return names


def names_for_recipe(file: Path, artifacts: Path) -> set[str]:
    """Return the names of the artifacts of a recipe, as far as they can exist.

    Raises:
        UsageError: its fingerprints cannot be computed on this machine, or the recipe cannot be read.
        RetroflowError: as `preview`.
    """
    recipe = load(file, [f"data.artifacts_folder={json.dumps(str(artifacts))}"], schema=recipe_schema())
    trainer: dict[str, Any] = recipe.values.get("trainer", {})
    looked = preview(recipe, retrieval=bool(trainer.get("retrieval", True)))
    if looked.unnamed:
        raise UsageError(f"{file}: the artifacts that it needs cannot be computed here: {looked.unnamed[0]}.")
    return set(looked.names)


def with_parents(names: Iterable[str], artifacts: Path) -> set[str]:
    """Add the artifacts from which these were made.

    Raises:
        DamagedDataError: the manifest of one that is there cannot be read.
    """
    waiting, found = list(names), set()
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if (artifacts / name).is_dir():
            waiting += _parents(artifacts / name)
    return found


def _parents(folder: Path) -> Iterator[str]:
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        raise DamagedDataError(
            f'"{folder}": it is needed, and its manifest.json is missing. Remove the folder; prepare builds it again.'
        ) from None
    yield from (f"{kind}-{parent['fingerprint']}" for kind, parent in manifest.parents.items())


def all_needed(runs_folders: Iterable[Path], recipes: Iterable[Path], artifacts: Path) -> tuple[set[str], list[Path]]:
    """Return the names of all needed artifacts, and every run.

    Raises:
        UsageError: a folder does not exist, or the needs of a run or recipe are unknown.
        DamagedDataError: a description cannot be read.
    """
    folders = list(runs_folders)
    runs = sorted({run for folder in folders for run in find_runs(folder)})
    names = names_for_runs(runs) | names_for_exports(folders)
    for recipe in recipes:
        names |= names_for_recipe(recipe, artifacts)
    return with_parents(names, artifacts), runs
