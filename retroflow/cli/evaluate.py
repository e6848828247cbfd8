"""`retroflow evaluate`: measure a checkpoint of a run."""

from pathlib import Path
from typing import Annotated

import typer

from retroflow.cli.streams import only_results_on_stdout


def evaluate(
    run_folder: Annotated[Path, typer.Argument(help="Run folder, such as runs/retro_small/0001.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides of the run's recipe, such as trainer.device=cpu.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="STEP|PATH", help="Which checkpoint. Default: the newest.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Where to write the report. Default: the run folder."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Measure a checkpoint of a run over the whole validation split; docs/evaluation.md."""
    from rich.console import Console

    from retroflow.store.sealed_json import strict_json
    from retroflow.training.evaluate import evaluate as evaluate_run

    with only_results_on_stdout():
        found = evaluate_run(run_folder, overrides or [], checkpoint=checkpoint, output=output)
    if as_json:
        file = None if found.file is None else str(found.file)
        values = {"run_folder": str(run_folder), "report": file, **found.report.to_json()}
        print(strict_json(values, what="the report"))
    else:
        Console().print(found.report.render())
        if found.file is not None:
            print(f"report: {found.file}")
    if found.failure is not None:
        raise found.failure
