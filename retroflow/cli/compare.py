"""`retroflow compare`: a model beside everything a user would pick instead."""

from pathlib import Path
from typing import Annotated

import typer

from retroflow.cli.streams import only_results_on_stdout, print_result, result_stream, writing_results


def compare(
    model: Annotated[str, typer.Argument(help="Run folder, such as runs/retro_small/0001.", show_default=False)],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as trainer.device=cpu.")
    ] = None,
    database: Annotated[
        str | None, typer.Option("--database", metavar="DB", help="Read this database, or DB@7, not the run's own.")
    ] = None,
    rows: Annotated[
        str | None, typer.Option("--rows", metavar="A,B", help="Rows of the table, or all. Default: docs/compare.md.")
    ] = None,
    sequences: Annotated[
        str, typer.Option("--sequences", metavar="N", help="Sequences to compare, evenly spaced, or all.")
    ] = "100",
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="STEP|PATH", help="Of a run. Default: the newest.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FOLDER", help="Where to keep it. Default: in the run folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as one JSON object.")] = False,
) -> None:
    """Compare a model with retrieval off, wrong and random neighbours, and text in the prompt; docs/compare.md."""
    from rich.console import Console

    from retroflow import api
    from retroflow.store.sealed_json import strict_json

    with only_results_on_stdout():
        found = api.compare(
            model,
            *(words or []),
            database=database,
            rows=None if rows is None else [name.strip() for name in rows.split(",") if name.strip()],
            sequences=sequences,
            checkpoint=checkpoint,
            output=output,
        )
    if as_json:
        print_result(strict_json(found.to_json(), what="the comparison"))
        return
    with writing_results():
        Console(file=result_stream()).print(found.render())
    print_result(f"comparison: {found.folder}")
