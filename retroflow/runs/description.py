"""Read a run folder: its artifacts and their folders, and check that it was not edited."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroflow.errors import DamagedDataError, GenerationError
from retroflow.store.sealed_json import read_sealed

EXPORT_FILE = "retroflow.json"
"""The file with the origin of an exported model."""

RUN_FILE = "run.json"
RECIPE_FILE = "recipe.yaml"

_LEVELS = 4
"""Number of folders, from the run's own upwards, that are searched for its artifacts: run, recipe, runs, project."""


@dataclass(frozen=True)
class RunDescription:
    """The content of run.json.

    Attributes:
        folder: the run folder.
        identity: identifies the run and its checkpoints.
        values: the run's recipe, as plain values.
        fingerprints: kind of artifact -> fingerprint.
        name: the recipe's.
        artifacts_folder: of its artifacts, relative to the run folder; empty if not recorded.
        started_in: folder in which `fit` was started, likewise.
    """

    folder: Path
    identity: dict[str, Any]
    values: dict[str, Any]
    fingerprints: dict[str, str]
    name: str
    artifacts_folder: str = ""
    started_in: str = ""

    def artifact(self, kind: str) -> Path:
        """Return the folder of the run's artifact of a kind.

        Raises:
            GenerationError: it cannot be found.
        """
        if kind not in self.fingerprints:
            raise GenerationError(
                f'"{self.folder}" was trained without retrieval (trainer.retrieval: false), so it has no {kind}; '
                "give a database, or retrieval=False."
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
        """Resolve relative paths of a recipe's section that do not exist here, from where the run was started.

        A value without a slash or a dot counts as a name.
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
        """Yield folders that may hold the run's artifacts: the recipe's, the run's, and those beside and above the run.

        Artifacts are identified by fingerprint, so a wrong one cannot be found.
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
    """Read a run folder's description, and check that neither it nor its recipe was edited.

    Raises:
        GenerationError: it is not a run folder.
        DamagedDataError: its run.json or recipe.yaml differs from what `fit` wrote.
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
    """Refuse a recipe that was edited; a missing one is accepted."""
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
    """Return a message that a folder is not a run folder, with the one that may be meant."""
    if not folder.is_dir():
        reason = "it is a file" if folder.exists() else "there is no such folder"
        return f'"{folder}": not a run folder ({reason}); give the folder that fit printed.'
    if (folder / EXPORT_FILE).is_file():
        return f'"{folder}": an exported model, not a run folder; give the folder that fit printed.'
    found = f'"{folder}": not a run folder (it has no {RUN_FILE}); '
    if (folder / "checkpoints").is_dir():
        return f"{found}but it holds checkpoints. Restore its {RUN_FILE}, or train again."
    meant = run_meant(folder)
    if meant is None:
        return f"{found}give the folder that fit printed."
    return f"{found}did you mean {meant}?"


def run_meant(folder: Path) -> Path | None:
    """Return the run folder that is probably meant by the folder above it or one in it; of several the newest."""
    for pattern in ("*", "*/*"):
        runs = [file.parent for file in folder.glob(f"{pattern}/{RUN_FILE}") if is_run_number(file.parent.name)]
        if runs:
            return max(runs, key=lambda run: int(run.name))
    return next((above for above in folder.absolute().parents[:2] if (above / RUN_FILE).is_file()), None)


def is_run_number(name: str) -> bool:
    """Return whether this is the name of a run folder of `fit`."""
    return re.fullmatch(r"[0-9]+", name) is not None


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings with dotted keys: {"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(values, dict):
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found
