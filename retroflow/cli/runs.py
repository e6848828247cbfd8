"""`retroflow runs`: list runs, compare two, show a report again, plot losses."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


class _ListByDefault(typer.core.TyperGroup):
    """A group in which `list` may be left out: `retroflow runs FOLDER` lists it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ListByDefault, help="List the runs of a folder (`retroflow runs [FOLDER]`), compare two, show a report again."
)

RunFolder = Annotated[Path, typer.Argument(help="Run folder, such as runs/retro_small/0001.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]


@app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Folder that holds runs.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List runs, the newest last: state, steps, losses, gain."""
    from retroflow.console import say
    from retroflow.runs.overview import overview, table

    runs = overview(folder)
    if as_json:
        print(json.dumps([run.to_json() for run in runs], indent=2, ensure_ascii=False))
        return
    if not runs:
        say(f'no run in "{folder}"; `retroflow fit` starts one')
        return
    print("\n".join(table(runs)))


@app.command("compare")
def compare(first: RunFolder, second: RunFolder, as_json: AsJson = False) -> None:
    """Compare two runs: what differs in their recipes, and their results."""
    from retroflow.runs.comparison import compare as compare_runs
    from retroflow.store.sealed_json import strict_json

    comparison = compare_runs(first, second)
    print(strict_json(comparison.to_json(), what="the last metrics") if as_json else "\n".join(comparison.lines()))


@app.command("report")
def report(run_folder: RunFolder, as_json: AsJson = False) -> None:
    """Print a run's stored report as `fit` printed it."""
    from rich.console import Console

    from retroflow.evaluation.stored_report import read_report

    stored = read_report(run_folder)
    if as_json:
        print(stored.to_json())
        return
    Console().print(stored.render())
    print(f"report: {run_folder / 'report.json'}")


@app.command("plot")
def plot(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, plotted in one picture.")],
    output: Annotated[Path, typer.Option("--output", help="Picture to write: .png, .svg or .pdf.")] = Path("loss.png"),
) -> None:
    """Plot the losses of runs over their steps (needs the extra `plot`)."""
    from retroflow.pictures.loss_plot import plot_losses

    plot_losses(run_folders, output)
    print(output)
