"""Open what `retroflow generate` is given: a run folder or an exported one, and a database for it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retroflow.corpus.tokenizer import Tokenizer
from retroflow.errors import GenerationError
from retroflow.generation import RetrievalDatabase
from retroflow.generation.exported import load_exported
from retroflow.model.pretrained import CONFIG_FILE
from retroflow.runs.description import RUN_FILE, not_a_run, run_meant
from retroflow.runs.trained_model import load_trained_model


@dataclass(frozen=True)
class Opened:
    """A model that is ready to generate.

    Attributes:
        model: on its device, in evaluation mode.
        tokenizer: the model's.
        num_neighbours: k it was trained with.
        sequence_length: tokens of a training sequence.
        database: fingerprint of the index it was trained with, empty if it was trained without retrieval.
        own_database: folder that opens that index, if the model came with one.
    """

    model: Any
    tokenizer: Tokenizer
    num_neighbours: int
    sequence_length: int
    database: str
    own_database: Path | None


def open_model(folder: Path, *, device: str, checkpoint: str | None = None) -> Opened:
    """Open a checkpoint of a run folder, or an exported folder.

    Args:
        folder: either.
        device: "auto", "cpu" or "cuda".
        checkpoint: of a run folder, a step or a path; None for the newest.

    Raises:
        GenerationError: the device or the folder is not there.
        RetroflowError: as `load_trained_model` and `load_exported`.
    """
    place = _device(device)
    if (folder / RUN_FILE).is_file():
        trained = load_trained_model(folder, checkpoint=checkpoint)
        values, prints = trained.run.values, trained.run.fingerprints
        return Opened(
            trained.model.to(place),
            trained.tokenizer,
            values["neighbours"]["k"],
            values["data"]["sequence_chunks"] * values["data"]["chunk_length"],
            prints.get("index", ""),
            own_database=folder,
        )
    if not folder.is_dir():
        raise GenerationError(
            f'there is no folder "{folder}"; give a run folder, which `retroflow fit` printed, or one that `retroflow '
            "export` wrote."
        )
    is_exported = (folder / CONFIG_FILE).is_file()
    if not is_exported and (run_meant(folder) is not None or (folder / "checkpoints").is_dir()):
        raise GenerationError(not_a_run(folder))
    if checkpoint is not None:
        raise GenerationError(f'--checkpoint: "{folder}" is an exported model, which has only one; leave it out.')
    exported = load_exported(folder)
    origin = exported.origin
    return Opened(
        exported.model.to(place),
        exported.tokenizer,
        origin.num_neighbours,
        origin.sequence_length,
        origin.fingerprints.get("index", ""),
        own_database=None,
    )


def open_database(
    opened: Opened, database: Path | None, *, retrieval: bool, say: Callable[[str], None]
) -> RetrievalDatabase | None:
    """Open the database that neighbours come from; None where there is nothing to retrieve for.

    Args:
        opened: the model.
        database: a folder, None for the run's own.
        retrieval: False switches retrieval off.
        say: told where the database is not the one that the model was trained with, and where none can be read.

    Raises:
        GenerationError: no database is given and the model has none of its own, or it does not fit the model.
    """
    if not retrieval:
        if database is not None:
            raise GenerationError("--no-retrieval: --database is given too; leave one of them out.")
        return None
    config = opened.model.config
    if not config.cca_layers:
        say("this model has no chunked cross-attention, so nothing is retrieved")
        return None
    folder = database or opened.own_database
    if folder is None:
        raise GenerationError(
            "--database: an exported model has no database of its own; give an index folder (index-... in the "
            "artifacts that `retroflow prepare` made), or --no-retrieval."
        )
    found = RetrievalDatabase.open(folder, tokenizer=opened.tokenizer, chunk_length=config.chunk_length)
    if found.fingerprint != opened.database:
        own = f"with index-{opened.database}" if opened.database else "without retrieval"
        say(f"database index-{found.fingerprint}; the model was trained {own}")
    return found


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise GenerationError(f"--device: {name!r} given; auto, cpu or cuda is needed.")
    if name == "cuda" and not torch.cuda.is_available():
        raise GenerationError("--device: cuda was asked for and torch sees no GPU; use --device cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
