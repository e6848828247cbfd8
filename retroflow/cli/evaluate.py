"""`retroflow evaluate`: measure a checkpoint of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retroflow.cli.streams import only_results_on_stdout, print_result, result_stream, writing_results

if TYPE_CHECKING:
    from retroflow.training.evaluate import Evaluation


def evaluate(
    run_folder: Annotated[Path, typer.Argument(help="Run folder, such as runs/retro_small/0001.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides of the recipe, such as trainer.device=cpu, or database=DB.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="STEP|PATH", help="Which one. Default: the newest.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Where to write the report. Default: the run folder."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Measure a checkpoint of a run over the whole validation split; docs/evaluation.md."""
    from retroflow import api

    def show(found: "Evaluation") -> None:
        _print(found, as_json=as_json)

    with only_results_on_stdout():
        api.evaluate(run_folder, *(overrides or []), checkpoint=checkpoint, output=output, show=show)


def _print(found: "Evaluation", *, as_json: bool) -> None:
    from rich.console import Console

    from retroflow.store.sealed_json import strict_json

    if as_json:
        file = None if found.file is None else str(found.file)
        values = {"run_folder": str(found.run_folder), "report": file, **found.report.to_json()}
        print_result(strict_json(values, what="the report"))
        return
    with writing_results():
        Console(file=result_stream()).print(found.report.render())
    if found.file is not None:
        print_result(f"report: {found.file}")
