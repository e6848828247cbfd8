"""`retroflow evaluate`: make the report of a run again."""

import json
from pathlib import Path
from typing import Annotated

import typer

from retroflow.cli.streams import only_results_on_stdout


def evaluate(
    run_folder: Annotated[Path, typer.Argument(help="Run folder, such as runs/retro_small/0001.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides of the run's recipe, such as trainer.device=cpu.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Measure a run's newest checkpoint over the whole validation split and rewrite its report."""
    from rich.console import Console

    from retroflow.training.verdict import evaluate as evaluate_run

    with only_results_on_stdout():
        report = evaluate_run(run_folder, overrides or [])
    if as_json:
        print(json.dumps({"run_folder": str(run_folder), **report.to_json()}))
    else:
        Console().print(report.render())
        print(f"report: {run_folder / 'report.json'}")
