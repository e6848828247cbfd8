"""A run folder as others see it: which artifacts it was trained with, where they are, and that nobody changed it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroflow.errors import DamagedDataError, GenerationError
from retroflow.store.sealed_json import read_sealed

EXPORT_FILE = "retroflow.json"
"""Says where an exported model comes from."""

RUN_FILE = "run.json"
RECIPE_FILE = "recipe.yaml"

_LEVELS = 4
"""Folders, from the run's own upwards, in which its artifacts are looked for: run, recipe, runs, project."""


@dataclass(frozen=True)
class RunDescription:
    """What run.json says.

    Attributes:
        folder: the run folder.
        identity: what the run and its checkpoints are bound to.
        values: the run's recipe, as plain values.
        fingerprints: kind of artifact -> fingerprint.
        name: the recipe's.
        artifacts_folder: where its artifacts were, relative to the run folder; empty if that was not written down.
        started_in: where `fit` was started, likewise.
    """

    folder: Path
    identity: dict[str, Any]
    values: dict[str, Any]
    fingerprints: dict[str, str]
    name: str
    artifacts_folder: str = ""
    started_in: str = ""

    def artifact(self, kind: str) -> Path:
        """Where the run's artifact of a kind is.

        Raises:
            GenerationError: it is not there.
        """
        if kind not in self.fingerprints:
            raise GenerationError(
                f'"{self.folder}": was trained without retrieval (trainer.retrieval: false), so that it has no {kind}; '
                "give --database, or --no-retrieval."
            )
        name = f"{kind}-{self.fingerprints[kind]}"
        places = self.artifact_places()
        for place in places:
            if (place / name).is_dir():
                return place / name
        looked = "".join(f"\n  {place.absolute()}" for place in places)
        raise GenerationError(
            f'"{self.folder}": {name}, which it was trained with, is in none of these folders:{looked}\nMove the '
            f"artifacts to one of them, or make them again: retroflow prepare --recipe {self.folder / RECIPE_FILE}"
        )

    def located(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """Lead the relative paths in a recipe's section from where the run was started, if they lead nowhere from here.

        What has neither a slash nor a dot is taken for a name.
        """
        if not self.started_in:
            return dict(section)
        start = Path(os.path.normpath(Path(os.path.realpath(self.folder)) / self.started_in))

        def lead(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: lead(inner) for key, inner in value.items()}
            is_path = isinstance(value, str) and ("/" in value or "." in value)
            return str(start / value) if is_path and not Path(value).exists() and (start / value).exists() else value

        return {key: lead(value) for key, value in section.items()}

    def artifact_places(self) -> list[Path]:
        """Folders that may hold the run's artifacts: as the recipe has it, as the run does, beside and above the run.

        A fingerprint names what is looked for, so that nothing wrong can be found in the wrong place.
        """
        given = Path(os.path.expanduser(self.values["data"]["artifacts_folder"]))
        below = Path(given.name) if given.is_absolute() else given
        own = Path(os.path.realpath(self.folder))
        places = [given, *([own / self.artifacts_folder] if self.artifacts_folder else [])]
        places += [level / below for level in (own, *own.parents)[:_LEVELS]]
        distinct: dict[Path, Path] = {}
        for place in places:
            normal = Path(os.path.normpath(place))
            distinct.setdefault(normal.absolute(), normal)
        return list(distinct.values())


def read_run(folder: Path) -> RunDescription:
    """Read a run folder's description, and check that neither it nor the recipe beside it was changed.

    Raises:
        GenerationError: it is not a run folder.
        DamagedDataError: its run.json or recipe.yaml is not what `fit` wrote.
    """
    file = folder / RUN_FILE
    try:
        described = read_sealed(file, remedy="Restore it, or train again.")
        identity: dict[str, Any] = described["identity"]
        values, fingerprints = identity["values"], identity["fingerprints"]
        recipe, _ = identity["recipe"], (values["data"]["artifacts_folder"], fingerprints["chunks"])
    except (FileNotFoundError, NotADirectoryError):
        raise GenerationError(not_a_run(folder)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedDataError(
            f'"{file}": not what fit writes ({type(error).__name__}: {error}). Restore it, or train again.'
        ) from error
    _check_recipe(folder / RECIPE_FILE, recipe)
    return RunDescription(
        folder,
        identity,
        values,
        fingerprints,
        name=described.get("name", folder.absolute().parent.name),
        artifacts_folder=described.get("artifacts_folder", ""),
        started_in=described.get("started_in", ""),
    )


def _check_recipe(file: Path, written: str) -> None:
    """Refuse a recipe that was changed; one that is not there misleads nobody."""
    try:
        found = file.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise DamagedDataError(f'"{file}": cannot be read ({error}). Restore it.') from error
    lines = written.split("\n")
    if found == lines:
        return
    number = next((n for n, pair in enumerate(zip(found, lines, strict=False)) if pair[0] != pair[1]), len(lines) - 1)
    here, there = (each[number].strip() if number < len(each) else "nothing" for each in (found, lines))
    raise DamagedDataError(
        f'"{file}", line {number + 1}: it was changed after the training: "{here}" there, "{there}" in {RUN_FILE}. '
        "Restore the line; give other values on the command line."
    )


def not_a_run(folder: Path) -> str:
    """Say that a folder is no run folder, and name the one that may be meant."""
    if not folder.is_dir():
        return f'"{folder}": not a run folder (there is no such folder); give the folder that fit printed.'
    found = f'"{folder}": not a run folder (it has no {RUN_FILE}); '
    if (folder / "checkpoints").is_dir():
        return f"{found}it holds checkpoints all the same. Restore its {RUN_FILE}, or train again."
    meant = run_meant(folder)
    if meant is None:
        return f"{found}give the folder that fit printed."
    return f"{found}did you mean {meant}?"


def run_meant(folder: Path) -> Path | None:
    """The run folder that somebody means who gives the one above it, or one in it; of several runs the newest."""
    for pattern in ("*", "*/*"):
        runs = [file.parent for file in folder.glob(f"{pattern}/{RUN_FILE}") if is_run_number(file.parent.name)]
        if runs:
            return max(runs, key=lambda run: int(run.name))
    return next((above for above in folder.absolute().parents[:2] if (above / RUN_FILE).is_file()), None)


def is_run_number(name: str) -> bool:
    """Whether `fit` gives a run folder such a name."""
    return re.fullmatch(r"[0-9]+", name) is not None
