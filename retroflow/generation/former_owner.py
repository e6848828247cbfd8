"""Name the distribution of a component that is not installed any more but is needed for a folder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retroflow.errors import DamagedDataError, GenerationError, UnknownComponentError
from retroflow.retrieval.saved_index import DESCRIPTION_FILE
from retroflow.runs.description import read_run
from retroflow.store.artifact import INDEX_FOLDER


@contextmanager
def naming_former_owner(kind: str, owner: str | None) -> Iterator[None]:
    """Add its former distribution to the error about an unknown name.

    Args:
        kind: of component, such as "retriever".
        owner: name and distribution as stored, "annoy (retroflow-annoy 0.1.0)"; None if unknown.

    Raises:
        UnknownComponentError: the one raised inside, with the distribution.
    """
    try:
        yield
    except UnknownComponentError as error:
        name, _, distribution = (owner or "").removesuffix(")").partition(" (")
        if not distribution or f'There is no {kind} "{name}"' not in str(error):
            raise
        package, _, version = distribution.partition(" ")
        raise UnknownComponentError(
            f"{error} It was from {distribution} when this was made. Install it again: pip install {package}=={version}"
        ) from error


def owner_of_index(index: Path) -> str | None:
    """Return the retriever that built an index artifact, with its distribution; None if not recorded."""
    try:
        description = json.loads((index / INDEX_FOLDER / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    owner = description.get("owner") if isinstance(description, dict) else None
    return owner if isinstance(owner, str) else None


def retriever_of_run(run_folder: Path) -> str | None:
    """Return the retriever of a run, with its distribution; None if unknown here."""
    try:
        return owner_of_index(read_run(run_folder).artifact("index"))
    except (GenerationError, DamagedDataError):
        return None
