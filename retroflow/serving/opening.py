"""Open what is served: a run, an exported folder, or a pretrained base that reads a database as it is."""

from pathlib import Path

from retroflow.generation.language_model import LanguageModel
from retroflow.generation.opening import open_language_model


def open_served(
    model: str, *, database: Path | None, retrieval: bool, device: str, checkpoint: str | None
) -> LanguageModel:
    """Open a model for serving.

    Args:
        model: a run folder or an exported folder.
        database, retrieval, device, checkpoint: as of `open_language_model`.

    Raises:
        RetroflowError: as `open_language_model`.
    """
    return open_language_model(
        Path(model), database=database, retrieval=retrieval, device=device, checkpoint=checkpoint
    )
