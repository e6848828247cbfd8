"""`retroflow export`: write a run's model into a folder that needs nothing else."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run_folder: Annotated[Path, typer.Argument(help="Run folder, such as runs/retro_small/0001.")],
    folder: Annotated[Path, typer.Argument(help="New or empty folder to write.")],
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="STEP|PATH", help="Checkpoint to export. Default: the newest.")
    ] = None,
    without_base: Annotated[
        bool, typer.Option("--without-base", help="Leave out a RETRO-fit's frozen base; the folder refuses another.")
    ] = False,
    model_licence: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="Licence of the weights, for the README. Default: the base's."),
    ] = None,
    database_licence: Annotated[
        str | None, typer.Option("--database-license", metavar="ID", help="Licence of the database's text, likewise.")
    ] = None,
    licence_link: Annotated[
        str | None, typer.Option("--license-link", metavar="URL", help="Text of a licence that the hub does not know.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", metavar="ID", help="Name on the hub of a base in a folder or file.")
    ] = None,
) -> None:
    """Write a run's newest checkpoint as safetensors, with its configuration, tokenizer and a README."""
    from retroflow.console import say
    from retroflow.generation.export import export as export_run
    from retroflow.runs.model_card import CardFacts

    facts = CardFacts(model_licence, licence_link, database_licence, base_model)
    origin = export_run(run_folder, folder, checkpoint=checkpoint, say=say, with_base=not without_base, facts=facts)
    print(f"{folder}: {origin.recipe}, step {origin.step:,}")
