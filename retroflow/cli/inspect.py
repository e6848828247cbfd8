"""`retroflow inspect`: what a model reads for a text, as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from retroflow.cli.streams import only_results_on_stdout, print_result


def inspect(  # noqa: PLR0913  # a command's parameters are its options (docs/decisions/0042)
    folder: Annotated[
        Path, typer.Argument(help="Run folder, or one that `retroflow export` wrote.", show_default=False)
    ],
    text: Annotated[str, typer.Argument(help="The text. -: standard input.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="New file for the page. Default: inspect.html.")
    ] = None,
    database: Annotated[
        Path | None,
        typer.Option("--database", help="Database, DB@VERSION, index, artifacts or run. Default: the run's own."),
    ] = None,
    neighbours: Annotated[
        int | None, typer.Option("--neighbours", min=1, help="Chunks retrieved per window. Default: as trained.")
    ] = None,
    retrieval_step: Annotated[
        int | None,
        typer.Option("--retrieval-step", min=1, help="Tokens between two retrievals. Default: as evaluated."),
    ] = None,
    retrieval: Annotated[bool, typer.Option(" /--no-retrieval", help="Read no neighbours.", show_default=False)] = True,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="STEP|PATH", help="Of a run. Default: the newest.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the data as one JSON object; a page only with --output.")
    ] = False,
) -> None:
    """Write a page with the loss of each token of a text, with and without retrieval, and what was read."""
    from retroflow.generation.opening import open_language_model
    from retroflow.generation.prompts import prompts_of_words, telling_in_flags
    from retroflow.pictures.inspected import inspect as inspect_text
    from retroflow.runs.folder import check_new_file
    from retroflow.store.sealed_json import strict_json

    page = output or (None if as_json else Path("inspect.html"))
    with only_results_on_stdout(), telling_in_flags([]):
        if page is not None:
            check_new_file(page)
        (prompt,) = prompts_of_words([text], "TEXT")
        model = open_language_model(
            folder, database=database, retrieval=retrieval, device=device, checkpoint=checkpoint
        )
        data = inspect_text(model, prompt.text, num_neighbours=neighbours, retrieval_step=retrieval_step, output=page)
    if as_json:
        print_result(strict_json(data, what="the page"))
    else:
        print_result(f"{page} ({data['bytes'] / 1e6:,.1f} MB)")
