"""Open a folder of `retroflow export` for generation: the model, its tokenizer and its origin."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroflow.components import MODELS
from retroflow.corpus.tokenizer import Tokenizer, load_tokenizer
from retroflow.errors import DamagedDataError
from retroflow.model.pretrained import (
    CONFIG_FILE,
    load_weights,
    make_config,
    read_config,
    same_random_state,
)
from retroflow.runs.origin import Origin, read_origin


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        model: on the CPU, in evaluation mode.
        tokenizer: the one it was trained with.
        origin: the run and its training.
    """

    model: Any
    tokenizer: Tokenizer
    origin: Origin


def load_exported(folder: Path) -> Exported:
    """Load an exported folder; nothing is unpickled.

    Raises:
        UsageError: not a model folder, or an impossible configuration.
        GenerationError: it has no tokenizer.
        DamagedDataError: a file is missing or changed.
        RetroflowError: the model's name is unknown here.
    """
    folder = Path(folder)
    read_config(folder)  # its complaints first
    origin = read_origin(folder)
    tokenizer = load_tokenizer(str(folder))
    if tokenizer.fingerprint() != origin.tokenizer:
        raise DamagedDataError(
            f'"{folder}": its tokenizer has the fingerprint {tokenizer.fingerprint()[:16]}, and the model was trained '
            f"with {origin.tokenizer[:16]}. Export the run again."
        )
    return Exported(load_model(folder), tokenizer, origin)


def load_model(folder: Path) -> Any:
    """Load the model of an exported or saved folder, on the CPU and in evaluation mode.

    Raises:
        UsageError: not a model folder, or an impossible configuration.
        DamagedDataError: a file is missing or changed.
        RetroflowError: the model's name is unknown here.
    """
    name, values = read_config(folder)
    config = make_config(MODELS.get(name), values, where=folder / CONFIG_FILE)
    with same_random_state():
        model: Any = config.located_in(folder).build()
    return load_weights(model, folder)
