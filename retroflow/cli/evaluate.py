"""`retroflow evaluate`: measure a checkpoint of a run, or run tasks on a model."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retroflow.cli.streams import only_results_on_stdout, print_result, result_stream, writing_results
from retroflow.errors import UsageError

if TYPE_CHECKING:
    from retroflow.integrations.evaluating import TaskRun
    from retroflow.training.evaluate import Evaluation


def evaluate(
    run_folder: Annotated[
        Path, typer.Argument(help="Run folder, such as runs/retro_small/0001; for tasks also an exported model.")
    ],
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
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="A,B",
            help="Run these instead: lambada, nq_open, xquad, qa, or tasks of lm-eval, by name or YAML; docs/tasks.md.",
        ),
    ] = None,
    task_data: Annotated[
        Path | None,
        typer.Option("--task-data", metavar="FOLDER", help="Files of our tasks. Default: $RETROFLOW_TASK_DATA."),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Examples of each task. Default: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Measure a checkpoint of a run over the whole validation split; docs/evaluation.md."""
    from retroflow import api
    from retroflow.generation.prompts import telling_in_flags

    with only_results_on_stdout(), telling_in_flags([]):
        if tasks is None:
            for flag, value in {"--task-data": task_data, "--limit": limit}.items():
                if value is not None:
                    raise UsageError(f"{flag}: only tasks use it; add --tasks.")
            api.evaluate(
                run_folder,
                *(overrides or []),
                checkpoint=checkpoint,
                output=output,
                show=partial(_print, as_json=as_json),
            )
            return
        from retroflow.integrations.evaluating import evaluate_tasks

        evaluate_tasks(
            run_folder,
            _names(tasks),
            *(overrides or []),
            task_data=task_data,
            limit=limit,
            checkpoint=checkpoint,
            output=output,
            show=partial(_print_task, as_json=as_json),
        )


def _names(tasks: str) -> list[str]:
    names = [name for word in tasks.split(",") if (name := word.strip())]
    if not names:
        raise UsageError("--tasks: names no task; write names with commas, such as lambada,nq_open.")
    return names


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


def _print_task(found: "TaskRun", *, as_json: bool) -> None:
    from rich.console import Console

    from retroflow.store.sealed_json import strict_json

    if as_json:  # one line for each task
        file = None if found.file is None else str(found.file)
        print_result(strict_json({"file": file, **found.result.to_json()}, what=found.name))
        return
    with writing_results():
        Console(file=result_stream()).print(found.result.render())
    if found.file is not None:
        print_result(f"results: {found.file}; every answer: {found.file.with_suffix('.jsonl')}")
