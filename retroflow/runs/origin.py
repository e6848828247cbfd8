"""The origin of an exported model: retroflow.json beside its weights."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from retroflow.errors import DamagedDataError, GenerationError
from retroflow.model.pretrained import (
    check_files,
)
from retroflow.runs.description import EXPORT_FILE
from retroflow.store.atomic import write_file


@dataclass(frozen=True)
class Origin:
    """The origin of an exported model; the content of retroflow.json.

    Attributes:
        recipe: name of the recipe.
        step: optimizer steps done.
        num_neighbours: k it was trained with.
        retrieval_step: tokens between two lookups when it was evaluated.
        sequence_length: tokens of a training sequence.
        tokenizer: fingerprint of its tokenizer.
        fingerprints: kind -> fingerprint of the artifacts it was trained with; "index" names its database.
        version: of retroflow that exported it.
    """

    recipe: str
    step: int
    num_neighbours: int
    retrieval_step: int
    sequence_length: int
    tokenizer: str
    fingerprints: dict[str, str]
    version: str

    def write(self, folder: Path) -> None:
        """Write retroflow.json."""
        write_file(folder / EXPORT_FILE, (json.dumps(asdict(self), indent=2) + "\n").encode())


def read_origin(folder: Path) -> Origin:
    """Read the origin of an exported model.

    Raises:
        GenerationError: the folder has no retroflow.json.
        DamagedDataError: it, or the tokenizer beside it, is missing or changed.
    """
    file = folder / EXPORT_FILE
    if not file.is_file():
        raise GenerationError(
            f'"{folder}": it has weights and no tokenizer (no {EXPORT_FILE}); generate from a folder that '
            "`retroflow export` made, or load the model in Python."
        )
    check_files(folder, (EXPORT_FILE, "tokenizer.json", "tokenizer_config.json"))
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Origin(**{field.name: values[field.name] for field in fields(Origin)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedDataError(f'"{file}": not what export writes ({type(error).__name__}: {error}).') from error
