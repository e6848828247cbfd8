"""`retroflow evaluate --tasks`: our own tasks and those of lm-evaluation-harness, by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from rich.console import RenderableType
from rich.table import Table

from retroflow.corpus.compressed import require
from retroflow.errors import UsageError
from retroflow.generation.language_model import LanguageModel
from retroflow.generation.opening import open_language_model
from retroflow.generation.options import GenerationOptions
from retroflow.runs.description import RUN_FILE, read_run
from retroflow.tasks.results import OFF, ON
from retroflow.tasks.running import TASKS, results_folder, run_task, write_result

WORDS = {
    "database": "a database or index folder",
    "neighbours.k": "chunks or passages that are read",
    "neighbours.step": "tokens between two retrievals",
    "trainer.device": "auto, cpu or cuda",
    "batch_size": "examples computed together",
}
"""Overrides that a task takes."""

HARNESS = "lm_eval:"
"""Before a name of the harness that is also one of ours: lm_eval:nq_open."""


class Result(Protocol):
    """What a task measured."""

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """One object for every example."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return everything but the predictions."""
        ...

    def render(self) -> RenderableType:
        """Return a table for a terminal."""
        ...


@dataclass(frozen=True)
class TaskRun:
    """A task that was run.

    Attributes:
        name: of the task.
        result: what was measured.
        file: of the result; its predictions are beside it, in a file that ends in .jsonl. None if nothing was written.
    """

    name: str
    result: Result
    file: Path | None


def evaluate_tasks(
    model: PathLike[str] | str,
    tasks: Sequence[str],
    *overrides: str,
    task_data: PathLike[str] | str | None = None,
    limit: int | None = None,
    checkpoint: str | int | None = None,
    output: PathLike[str] | str | None = None,
    show: Callable[[TaskRun], None] = lambda run: None,
) -> list[TaskRun]:
    """Run tasks, as `retroflow evaluate --tasks` does: without retrieval, and with a database (docs/tasks.md).

    Args:
        model: a run, its folder, or that of an exported model.
        tasks: "lambada", "nq_open", "xquad", "qa"; other names are those of lm-evaluation-harness, or its files;
            "lm_eval:nq_open" is the harness' task of that name.
        overrides: "database=DB", "neighbours.k=20", "neighbours.step=16", "trainer.device=cpu", "batch_size=4".
        task_data: folder of the files of our tasks; None for the one that the environment names.
        limit: examples of each task: drawn at random by ours, the first by the harness; None for all of them.
        checkpoint: of a run, a step or a path; None for the newest.
        output: folder of the results; None for `tasks` in the run's, and nothing is written for an exported model.
        show: called with each finished task.

    Raises:
        UsageError: a word or a task is not known, or a file is missing.
        RetroflowError: as `open_language_model`.
    """
    folder, values = Path(model), _parsed(overrides)
    ours = [name for name in tasks if name in TASKS]
    theirs = [name.removeprefix(HARNESS) for name in tasks if name not in TASKS]
    if theirs:
        require("lm_eval", extra="lm-eval", purpose=f"tasks: {', '.join(theirs)}: not ours ({', '.join(TASKS)})")
    retrieves = "database" in values or _has_database(folder)
    opened = open_language_model(
        folder,
        database=values.get("database"),
        retrieval=retrieves,
        device=values.get("trainer.device", "auto"),
        checkpoint=None if checkpoint is None else str(checkpoint),
    )
    options = GenerationOptions(
        num_neighbours=values.get("neighbours.k", opened.origin.num_neighbours),
        retrieval_step=values.get("neighbours.step", opened.origin.retrieval_step),
        batch_size=values.get("batch_size", 8),
    )
    place, runs = results_folder(folder, None if output is None else Path(output)), list[TaskRun]()

    def keep(name: str, result: Result) -> None:
        file = None if place is None else write_result(result.to_json(), result.predictions, place)
        runs.append(TaskRun(name, result, file))
        show(runs[-1])

    data = None if task_data is None else Path(task_data)
    for name in ours:
        keep(name, run_task(opened, name, folder=data, limit=limit, options=options))
    if theirs:
        for result in _of_harness(opened, theirs, limit, options):
            keep(result.task, result)
    return runs


def _has_database(folder: Path) -> bool:
    """Say whether a model has a database of its own: runs have one, unless they were trained without retrieval."""
    return (folder / RUN_FILE).is_file() and bool(read_run(folder).values["trainer"]["retrieval"])


def _parsed(words: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in WORDS:
            allowed = ", ".join(f"{name}= ({meaning})" for name, meaning in WORDS.items())
            raise UsageError(f"{word}: not an override of tasks; allowed: {allowed}.")
        if key in ("database", "trainer.device"):
            values[key] = value
        elif value.isdecimal() and int(value) > 0:
            values[key] = int(value)
        else:
            raise UsageError(f"{word}: not a whole number of at least 1; correct {key}.")
    return values


@dataclass(frozen=True)
class HarnessResult:
    """What lm-evaluation-harness measured of one task.

    Attributes:
        task: its name.
        ways: way of retrieving -> metric -> its value and standard error.
        predictions: the harness' samples.
        measured: how, and what.
        examples: measured ones.
        available: examples of the task.
    """

    task: str
    ways: dict[str, dict[str, dict[str, float | None]]]
    predictions: list[dict[str, Any]]
    measured: dict[str, Any]
    examples: int | None
    available: int | None

    def to_json(self) -> dict[str, Any]:
        """Return everything but the samples."""
        return {
            "task_version": 1,
            "task": self.task,
            "measured": self.measured,
            "sample": {"examples": self.examples, "of": self.available},
            "ways": self.ways,
        }

    def render(self) -> Table:
        """Return a table for a terminal: value and standard error."""
        part = "" if self.examples is None else f": {self.examples:,} of {self.available:,} examples"
        table = Table(title=f"{self.task} (lm-eval){part}, with standard errors", title_justify="left")
        table.add_column("metric")
        for way in self.ways:
            table.add_column(f"retrieval {way}", justify="right")
        for metric in next(iter(self.ways.values())):
            table.add_row(metric, *[_cell(of_way.get(metric, {})) for of_way in self.ways.values()])
        return table


def _cell(number: Mapping[str, float | None]) -> str:
    value, error = number.get("value"), number.get("standard_error")
    if value is None:
        return ""
    return f"{value:.4f}" + ("" if error is None else f" +- {error:.4f}")


def _of_harness(
    opened: LanguageModel, tasks: Sequence[str], limit: int | None, options: GenerationOptions
) -> list[HarnessResult]:
    from retroflow.integrations.lm_eval import run_harness

    models = {OFF: replace(opened, database=None)}
    if opened.database is not None:
        models[ON] = opened
    found = run_harness(models, tasks, limit=limit, options=options)
    results, database = found[OFF], opened.database
    measured = {
        "model": opened.origin.recipe,
        "step": opened.origin.step,
        "database": None if database is None else database.name,
        "limit": limit,
        "num_neighbours": options.num_neighbours,
        "retrieval_step": options.step_for(opened.model.config.chunk_length),
        "lm_eval": results.get("lm_eval_version"),
    }
    return [
        HarnessResult(
            task,
            {way: _metrics(of_way["results"][task]) for way, of_way in found.items()},
            [sample | {"way": way} for way, of_way in found.items() for sample in of_way["samples"].get(task, [])],
            measured | {"version": results["versions"].get(task)},
            results["n-samples"].get(task, {}).get("effective"),
            results["n-samples"].get(task, {}).get("original"),
        )
        for task in results["results"]
    ]


def _metrics(values: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return the harness' "acc,none" and "acc_stderr,none" as one object."""
    metrics = {}
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = values.get(f"{metric}_stderr,{kind}")
            name = metric if kind == "none" else f"{metric} ({kind})"
            metrics[name] = {"value": value, "standard_error": error if isinstance(error, int | float) else None}
    return metrics
