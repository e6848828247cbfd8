"""Open a model for generation: a run folder or an exported one, and a database."""

from pathlib import Path

import torch

from retroflow.console import say
from retroflow.database.database import Database
from retroflow.devices import NO_CUDA, choose_device
from retroflow.errors import GenerationError
from retroflow.generation.arguments import unfit
from retroflow.generation.database import RetrievalDatabase
from retroflow.generation.export import origin_of
from retroflow.generation.exported import load_exported
from retroflow.generation.language_model import LanguageModel
from retroflow.model.pretrained import CONFIG_FILE
from retroflow.runs.description import RUN_FILE, not_a_run, run_meant
from retroflow.runs.model_card import CARD_FILE, write_card
from retroflow.runs.origin import Origin
from retroflow.runs.trained_model import load_trained_model


def open_language_model(
    folder: Path,
    *,
    database: RetrievalDatabase | Database | Path | str | None = None,
    retrieval: bool = True,
    device: str = "auto",
    checkpoint: str | None = None,
) -> LanguageModel:
    """Open a checkpoint of a run folder, or an exported folder.

    Args:
        folder: either.
        database: an open database, or its folder; None for the run's own.
        retrieval: False switches retrieval off.
        device: "auto", "cpu" or "cuda".
        checkpoint: of a run folder, a step or a path; None for the newest.

    Raises:
        GenerationError: the device or the folder does not exist; the model has no database of its own and none is
            given, or it does not fit the model.
        RetroflowError: as `load_trained_model` and `load_exported`.
    """
    if not retrieval and database is not None:
        raise unfit("retrieval", "it is switched off, and a database is given too; leave one of them out.")
    place = _device(device)
    if (folder / RUN_FILE).is_file():
        trained = load_trained_model(folder, checkpoint=checkpoint)
        origin = origin_of(trained)
        card = write_card(trained, origin, say)
        opened = LanguageModel(trained.model.to(place), trained.tokenizer, origin, None, card)
        return _with_database(opened, database or folder) if retrieval else opened
    _check_exported(folder, checkpoint)
    exported = load_exported(folder)
    card = (folder / CARD_FILE).read_text(encoding="utf-8") if (folder / CARD_FILE).is_file() else ""
    opened = LanguageModel(exported.model.to(place), exported.tokenizer, exported.origin, None, card)
    return _with_database(opened, database) if retrieval else opened


def _check_exported(folder: Path, checkpoint: str | None) -> None:
    if not folder.is_dir():
        raise GenerationError(
            f'there is no folder "{folder}"; give a run folder, which `retroflow fit` printed, or one that `retroflow '
            "export` wrote."
        )
    is_exported = (folder / CONFIG_FILE).is_file()
    if not is_exported and (run_meant(folder) is not None or (folder / "checkpoints").is_dir()):
        raise GenerationError(not_a_run(folder))
    if checkpoint is not None:
        raise unfit("checkpoint", f'"{folder}" is an exported model, which has only one; leave it out.')


def _with_database(opened: LanguageModel, database: RetrievalDatabase | Database | Path | str | None) -> LanguageModel:
    if not opened.model.config.retrieves:
        say("this model reads no neighbours, so nothing is retrieved")
        return opened
    if database is None:
        raise unfit(
            "database",
            "an exported model has no database of its own; give one that `retroflow db build` made, or an index folder "
            "(index-... in the artifacts that `retroflow prepare` made), or switch retrieval off.",
        )
    reading = opened.with_database(database)
    assert reading.database is not None
    _note_other_database(reading.database, opened.origin)
    return reading


def _note_other_database(database: RetrievalDatabase, origin: Origin) -> None:
    trained_with = origin.fingerprints.get("index", "")
    if database.fingerprint != trained_with:
        own = f"with index-{trained_with}" if trained_with else "without retrieval"
        say(f"database {database.name}; the model was trained {own}")


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise unfit("device", f'is "{name}"; allowed: "auto", "cpu" or "cuda".')
    if name == "cuda" and not torch.cuda.is_available():
        raise unfit("device", f"{NO_CUDA}.")
    return torch.device(choose_device(name, "device"))
