"""What `retroflow export` wrote, opened for generation: the model, its tokenizer, and what it was trained with."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from retroflow.components import MODELS
from retroflow.corpus.tokenizer import Tokenizer, load_tokenizer
from retroflow.errors import DamagedDataError, GenerationError
from retroflow.model.pretrained import (
    CONFIG_FILE,
    check_files,
    load_weights,
    make_config,
    read_config,
    same_random_state,
)
from retroflow.store.atomic import write_file

DESCRIPTION_FILE = "retroflow.json"


@dataclass(frozen=True)
class Origin:
    """Where an exported model comes from; the content of retroflow.json.

    Attributes:
        recipe: name of the recipe.
        step: optimizer steps done.
        num_neighbours: k it was trained with.
        sequence_length: tokens of a training sequence.
        tokenizer: fingerprint of its tokenizer.
        fingerprints: kind -> fingerprint of the artifacts it was trained with; "index" names its database.
        version: of retroflow that exported it.
    """

    recipe: str
    step: int
    num_neighbours: int
    sequence_length: int
    tokenizer: str
    fingerprints: dict[str, str]
    version: str

    def write(self, folder: Path) -> None:
        """Write retroflow.json."""
        write_file(folder / DESCRIPTION_FILE, (json.dumps(asdict(self), indent=2) + "\n").encode())


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        model: on the CPU, in evaluation mode.
        tokenizer: the one it was trained with.
        origin: where it comes from.
    """

    model: Any
    tokenizer: Tokenizer
    origin: Origin


def load_exported(folder: Path) -> Exported:
    """Load an exported folder; nothing is unpickled.

    Raises:
        RecipeError: not a model folder, or a configuration that cannot be.
        GenerationError: it has no tokenizer.
        DamagedDataError: a file is missing or changed.
        RetroflowError: the model's name is not known here.
    """
    folder = Path(folder)
    name, values = read_config(folder)
    origin = read_origin(folder)
    tokenizer = load_tokenizer(str(folder))
    if tokenizer.fingerprint() != origin.tokenizer:
        raise DamagedDataError(
            f'"{folder}": its tokenizer has the fingerprint {tokenizer.fingerprint()[:16]}, and the model was trained '
            f"with {origin.tokenizer[:16]}. Export the run again."
        )
    config = make_config(MODELS.get(name), values, where=folder / CONFIG_FILE)
    if hasattr(config, "located_in"):  # it needs further files, which lie beside it
        config = config.located_in(folder)
    with same_random_state():
        model = config.build()
    return Exported(load_weights(model, folder), tokenizer, origin)


def read_origin(folder: Path) -> Origin:
    """Read where an exported model comes from.

    Raises:
        GenerationError: the folder has no retroflow.json.
        DamagedDataError: it, or the tokenizer beside it, is missing or changed.
    """
    file = folder / DESCRIPTION_FILE
    if not file.is_file():
        raise GenerationError(
            f'"{folder}": it has weights and no tokenizer (no {DESCRIPTION_FILE}); generate from a folder that '
            "`retroflow export` made, or load the model in Python."
        )
    check_files(folder, (DESCRIPTION_FILE, "tokenizer.json", "tokenizer_config.json"))
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Origin(**{field.name: values[field.name] for field in fields(Origin)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedDataError(f'"{file}": not what export writes ({type(error).__name__}: {error}).') from error
