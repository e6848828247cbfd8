"""`retroflow compare`: a model beside everything a user would pick instead."""

from pathlib import Path
from typing import Annotated

import typer

from retroflow.cli.streams import only_results_on_stdout, print_result, result_stream, writing_results

WIDTH = 100
"""Columns of the table in a file or a pipe."""


def compare(  # noqa: PLR0913  # a command's parameters are its options (docs/decisions/0042)
    model: Annotated[str, typer.Argument(help="Run folder, exported folder, or pretrained base.", show_default=False)],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as trainer.device=cpu.")
    ] = None,
    database: Annotated[
        str | None, typer.Option("--database", metavar="DB", help="Read this database, or DB@7. A run has its own.")
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option("--corpus", metavar="PATH", help="Text, if MODEL is no run: JSON Lines, or a folder of text."),
    ] = None,
    rows: Annotated[
        str | None, typer.Option("--rows", metavar="A,B", help="Rows of the table, or all. Default: docs/compare.md.")
    ] = None,
    sequences: Annotated[
        str, typer.Option("--sequences", metavar="N", help="Sequences to compare, evenly spaced, or all.")
    ] = "100",
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", metavar="RUN", help="Another run of the same corpus, as a row; may be repeated."),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="STEP|PATH", help="Of a run. Default: the newest.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FOLDER", help="Where to keep it. Default: RUN/comparisons."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as one JSON object.")] = False,
) -> None:
    """Compare a model with retrieval off, wrong and random neighbours, and text in the prompt; docs/compare.md."""
    from rich.console import Console

    from retroflow import api
    from retroflow.console import say
    from retroflow.store.sealed_json import strict_json

    with only_results_on_stdout():
        found = api.compare(
            model,
            *(words or []),
            database=database,
            corpus=corpus,
            rows=None if rows is None else [name.strip() for name in rows.split(",") if name.strip()],
            sequences=sequences,
            against=against or [],
            checkpoint=checkpoint,
            output=output,
        )
    if as_json:
        for sentence in found.warnings:
            say(f"WARNING: {sentence}")
        print_result(strict_json(found.to_json(), what="the comparison"))
        return
    with writing_results():
        stream = result_stream()
        Console(file=stream, width=None if stream.isatty() else WIDTH).print(found.render())
    print_result(f"comparison: {found.folder}")
