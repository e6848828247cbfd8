"""`retroflow curve`: the loss of a model against one thing that is varied, or of several runs over their training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retroflow.cli.streams import only_results_on_stdout, print_result, result_stream, writing_results

if TYPE_CHECKING:
    from retroflow.comparison.curve_file import Curve


def curve(  # noqa: PLR0913  # a command's parameters are its options (docs/decisions/0042)
    words: Annotated[
        list[str],
        typer.Argument(metavar="MODEL [RUN...] [KEY=VALUE...]", help="As for compare; runs over training; overrides."),
    ],
    over: Annotated[str, typer.Option("--over", metavar="AXIS", help="k, size, retriever, step, alpha or training.")],
    values: Annotated[
        str | None, typer.Option("--values", metavar="A,B", help="Points, such as 1,2,8. Default: docs/curves.md.")
    ] = None,
    database: Annotated[
        str | None, typer.Option("--database", metavar="DB", help="Read this database, or DB@7, not the run's own.")
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option("--corpus", metavar="PATH", help="Text, if MODEL is no run: JSON Lines, or a folder of text."),
    ] = None,
    sequences: Annotated[
        str | None,
        typer.Option("--sequences", metavar="N", help="Sequences to measure, evenly spaced, or all. Default: 100."),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="STEP|PATH", help="Of a run. Default: the newest.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FOLDER", help="Where to write it. Default: the run's `curves`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the curve as one JSON object.")] = False,
) -> None:
    """Measure the loss against k, database size, retriever, lookups, overlap or training; docs/curves.md."""
    from retroflow.components import retriever_words
    from retroflow.errors import UsageError
    from retroflow.pictures import curves

    runs, overrides = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if over == "training":
        given = {"--values": values, "--database": database, "--corpus": corpus, "--checkpoint": checkpoint}
        given |= {"--sequences": sequences}
        unused = [*(name for name, value in given.items() if value is not None), *overrides]
        if unused:
            raise UsageError(f"--over training reads what the runs logged; leave out {', '.join(unused)}.")
        with only_results_on_stdout():
            made = curves.training_curves(*runs, output=output)
    else:
        if len(runs) != 1:
            raise UsageError(f"over='{over}': {len(runs)} models given; give one. Runs go with over='training'.")
        with only_results_on_stdout():
            found = curves.curve(
                runs[0],
                *overrides,
                over=over,
                values=[] if values is None else retriever_words(values, "random"),
                database=database,
                corpus=corpus,
                sequences=sequences or "100",
                checkpoint=checkpoint,
                output=output,
            )
        made = [found]
    _print(made, as_json=as_json)


def _print(made: "list[Curve]", *, as_json: bool) -> None:
    from rich.console import Console

    from retroflow.store.sealed_json import strict_json

    if as_json:
        values = [one.to_json() for one in made]
        print_result(strict_json(values[0] if len(values) == 1 else {"curves": values}, what="the curve"))
        return
    with writing_results():
        for one in made:
            Console(file=result_stream()).print(one.render())
    for one in made:
        print_result(f"curve: {one.file}")
