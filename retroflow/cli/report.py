"""`retroflow report`: everything that was measured of a run, as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from retroflow.cli.streams import only_results_on_stdout, print_result


def report(
    run_folder: Annotated[Path, typer.Argument(help="Run folder, such as runs/retro_small/0001.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="New file for the page.")] = Path(
        "report.html"
    ),
    chunks: Annotated[
        int, typer.Option("--chunks", min=0, help="Chunks to inspect in the page. 0: opens no model.")
    ] = 40,
    sequences: Annotated[
        int, typer.Option("--sequences", min=1, help="Validation sequences to choose them from, evenly spaced.")
    ] = 16,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="STEP|PATH", help="To inspect. Default: the newest.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option("--plots", metavar="FOLDER", help="For the table and curves as PNG and SVG.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the page's data, too, as one JSON object.")] = False,
) -> None:
    """Write a page with a run's results, curves, and an inspector of its neighbours; docs/report.md."""
    from retroflow.generation.prompts import telling_in_flags
    from retroflow.pictures.report import report_page
    from retroflow.store.sealed_json import strict_json

    with only_results_on_stdout(), telling_in_flags([]):
        data = report_page(run_folder, output, chunks=chunks, sequences=sequences, checkpoint=checkpoint, plots=plots)
    size = f"{output} ({data['bytes'] / 1e6:,.1f} MB)"
    print_result(strict_json({"page": str(output), **data}, what="the page") if as_json else size)
