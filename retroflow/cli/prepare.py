"""`retroflow prepare`: make the artifacts of a recipe, without training."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from retroflow.pipeline.prepare import Stage


def prepare(
    recipe: Annotated[Path, typer.Option("--recipe", help="Recipe file (YAML).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides, such as retriever.name=scann neighbours.k=4.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
) -> None:
    """Make chunks, embeddings, index and neighbours, or re-use those that are there."""
    from retroflow.components import recipe_schema
    from retroflow.pipeline.prepare import describe
    from retroflow.pipeline.prepare import prepare as prepare_artifacts
    from retroflow.recipe import load

    loaded = load(recipe, overrides or [], schema=recipe_schema())
    if as_json:
        prepared = prepare_artifacts(loaded)
        print(json.dumps({"stages": [_as_json(stage) for stage in prepared.stages]}, indent=2))
    else:
        prepare_artifacts(loaded, report=lambda stage: print(describe(stage), flush=True))


def _as_json(stage: "Stage") -> dict[str, object]:
    return {
        "stage": stage.kind,
        "built": stage.built,
        "seconds": round(stage.seconds, 3),
        "folder": str(stage.folder),
        "fingerprint": stage.manifest.fingerprint,
        "info": dict(stage.manifest.info),
    }
