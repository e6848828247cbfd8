"""`retroflow score`: how well a model predicts given passages, with each of several databases."""

from pathlib import Path
from typing import Annotated

import typer

from retroflow.cli.streams import only_results_on_stdout, print_result, result_stream, writing_results

Folder = Annotated[Path, typer.Argument(help="Run folder, or one that `retroflow export` wrote.", show_default=False)]
Passages = Annotated[
    Path,
    typer.Option(
        "--passages",
        metavar="FILE",
        help='JSON Lines with "text" and, if you like, "context", "old_text", "document", "groups".',
        show_default=False,
    ),
]
Databases = Annotated[
    list[Path] | None,
    typer.Option("--database", help="Database, index, artifacts or run folder to compare with; may be repeated."),
]
Neighbours = Annotated[
    int | None, typer.Option("--neighbours", min=1, help="Chunks retrieved per window. Default: as trained.")
]
Step = Annotated[
    int | None,
    typer.Option("--retrieval-step", min=1, help="Tokens between two retrievals. Default: the chunk length."),
]


def score(  # noqa: PLR0913  # a command's parameters are its options (docs/decisions/0042)
    folder: Folder,
    passages: Passages,
    database: Databases = None,
    neighbours: Neighbours = None,
    retrieval_step: Step = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="STEP|PATH", help="Of a run. Default: the newest.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    output: Annotated[Path | None, typer.Option("--output", metavar="FILE", help="New file for the report.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Measure how well a model predicts passages with retrieval off, its own database and others; docs/attach.md."""
    from rich.console import Console

    from retroflow import api
    from retroflow.generation.prompts import telling_in_flags
    from retroflow.store.sealed_json import strict_json

    with only_results_on_stdout(), telling_in_flags([]):
        report = api.score(
            folder,
            passages,
            databases=database or [],
            num_neighbours=neighbours,
            retrieval_step=retrieval_step,
            device=device,
            checkpoint=checkpoint,
            output=output,
        )
    if as_json:
        print_result(strict_json(report.to_json(), what="the report"))
        return
    with writing_results():
        Console(file=result_stream()).print(report.render())
    if output is not None:
        print_result(f"report: {output}")
