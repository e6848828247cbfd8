"""A run folder as generation sees it: which artifacts it was trained with, and how their components are opened."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroflow.errors import DamagedDataError, GenerationError

RUN_FILE = "run.json"


@dataclass(frozen=True)
class RunDescription:
    """What run.json says.

    Attributes:
        folder: the run folder.
        identity: what the run and its checkpoints are bound to.
        values: the run's recipe, as plain values.
        fingerprints: kind of artifact -> fingerprint.
    """

    folder: Path
    identity: dict[str, str]
    values: dict[str, Any]
    fingerprints: dict[str, str]

    @property
    def name(self) -> str:
        """The recipe's: runs lie in a folder of its name."""
        return self.folder.absolute().parent.name

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
        artifacts = Path(os.path.expanduser(self.values["data"]["artifacts_folder"]))
        folder = artifacts / f"{kind}-{self.fingerprints[kind]}"
        if not folder.is_dir():
            raise GenerationError(
                f'"{self.folder}": what it was trained with is not at "{folder.absolute()}". Run this where the run '
                "was started, or make it again there with: "
                f"retroflow prepare --recipe {self.folder / 'recipe.yaml'}"
            )
        return folder


def read_run(folder: Path) -> RunDescription:
    """Read a run folder's description.

    Raises:
        GenerationError: it is not a run folder.
        DamagedDataError: its run.json is not what `fit` writes.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        raise GenerationError(f'"{folder}": not a run folder (it has no {RUN_FILE}); give the folder that fit printed.')
    try:
        identity = json.loads(file.read_text(encoding="utf-8"))["identity"]
        values, fingerprints = json.loads(identity["values"]), json.loads(identity["fingerprints"])
        values["data"]["artifacts_folder"], fingerprints["chunks"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedDataError(
            f'"{file}": not what fit writes ({type(error).__name__}: {error}). Restore it, or train again.'
        ) from error
    return RunDescription(folder, identity, values, fingerprints)
