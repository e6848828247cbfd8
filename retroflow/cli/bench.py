"""`retroflow bench`: recall against speed, build time, memory and disk of retrievers."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from retroflow.cli.flags import with_flags
from retroflow.cli.streams import only_results_on_stdout, print_result, result_stream, writing_results

WIDTH = 120
"""Columns of the tables in a file or a pipe."""


@with_flags("retroflow.benchmarking.options:BenchOptions")
def bench(  # noqa: PLR0913  # a command's parameters are its options (docs/decisions/0042)
    *,
    retriever: Annotated[
        list[str] | None,
        typer.Option(
            "--retriever",
            metavar="A,B",
            help="Names, with options as in hnsw:build.links=32:search.ef=64, or auto. May be repeated.",
        ),
    ] = None,
    database: Annotated[
        str | None, typer.Option("--database", metavar="DB", help="Vectors of a database, DB@7, artifacts or a run.")
    ] = None,
    vectors: Annotated[
        str | None, typer.Option("--vectors", metavar="FILE", help="Vectors of a .npy file, float16 or float32.")
    ] = None,
    random: Annotated[
        str | None, typer.Option("--random", metavar="N,D", help="Draw N clustered vectors of width D.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="RUN", help="Measure its loss with each setting, too.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option("--corpus", metavar="PATH", help="Text, if the model is no run, as for compare.")
    ] = None,
    sequences: Annotated[str, typer.Option("--sequences", metavar="N", help="Of the model's text, or all.")] = "100",
    options: Mapping[str, Any],
    explain: Annotated[
        bool, typer.Option("--explain", help="Only say which index fits the vectors and the memory, and why.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure retrievers on the same vectors: recall, speed, memory, disk; docs/bench.md."""
    from rich.console import Console

    from retroflow.benchmarking.front import bench as measure
    from retroflow.benchmarking.front import explain as choose
    from retroflow.benchmarking.options import BenchOptions
    from retroflow.components import retriever_words
    from retroflow.generation.prompts import telling_in_flags
    from retroflow.store.sealed_json import strict_json

    with telling_in_flags([]), only_results_on_stdout():
        chosen = BenchOptions(**options)
        if explain:
            found: Any = choose(database=database, vectors=vectors, random=random, options=chosen)
        else:
            words = [word for text in retriever or [] for word in retriever_words(text)]
            judged: dict[str, Any] = {"model": model, "corpus": corpus, "sequences": sequences}
            found = measure(words, database=database, vectors=vectors, random=random, **judged, options=chosen)
    if as_json:
        print_result(strict_json(found.to_json(), what="the benchmark"))
        return
    with writing_results():
        stream = result_stream()
        Console(file=stream, width=None if stream.isatty() else WIDTH).print(found.render())
    if not explain:
        print_result(f"benchmark: {found.folder}")
