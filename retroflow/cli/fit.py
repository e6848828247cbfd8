"""`retroflow fit`: prepare what is missing, train, evaluate."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retroflow.cli.streams import only_results_on_stdout, print_result, result_stream, writing_results
from retroflow.errors import UsageError

if TYPE_CHECKING:
    from retroflow.recipe import Recipe
    from retroflow.training.fit import FitResult


def fit(
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="Recipe file (YAML). With --resume RUN the default is the run's.")
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Overrides, such as trainer.max_steps=2000. After --resume also a run folder or checkpoint; a larger "
            "trainer.max_steps then trains the run longer.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the recipe's last unfinished run, or the one named.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what the run would need; prepare and download nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
    ignore_memory: Annotated[
        bool, typer.Option("--ignore-memory", help="Train even if the run needs more memory than this machine has.")
    ] = False,
) -> None:
    """Prepare what is missing, train a model, and measure what retrieval is worth."""
    from retroflow.distributed.stop_signals import preempted_while_starting

    with preempted_while_starting():
        from retroflow import api

        overrides, resumed = split_words(words or [], resume=resume)
        loaded = api.load_recipe(recipe or recipe_of(resumed, words or []), *overrides)
        if dry_run:
            if resume:
                raise UsageError("--dry-run describes a new run; leave --resume out.")
            _print_dry_run(loaded, as_json=as_json)
            return
        from retroflow.training import fit as _imported_now  # noqa: F401 - while a signal still ends it at once

    show = _print_json if as_json else _print_tables
    with only_results_on_stdout():
        api.fit(loaded, resume=resumed, show=show, ignore_memory=ignore_memory)


def recipe_of(resumed: Path | None, words: list[str]) -> Path:
    """Return the recipe of a run that is named by its folder or by a checkpoint.

    Args:
        resumed: the path after --resume, as from `split_words`.
        words: the command's words, for a hint at the intended command.
    """
    if resumed is None or resumed == Path("last"):
        recipe = next((word for word in words if word.endswith((".yaml", ".yml"))), "FILE")
        raise UsageError(
            f"Missing option '--recipe'. Write: --recipe {recipe}, or --resume RUN for the recipe of a run."
        )
    folder = resumed.parent.parent if resumed.is_file() else resumed
    if not (folder / "recipe.yaml").is_file():
        raise UsageError(
            f"--resume {resumed}: not in a run folder (no recipe.yaml in {folder}); give --recipe FILE, too."
        )
    from retroflow.runs.description import read_run

    read_run(folder)  # refuses a recipe.yaml that was edited
    return folder / "recipe.yaml"


def _print_dry_run(loaded: "Recipe", *, as_json: bool) -> None:
    from retroflow.planning.dry_run import dry_run as look_ahead

    found = look_ahead(loaded)
    print(json.dumps(found.to_json()) if as_json else "\n".join(found.lines()), flush=True)
    if found.failure is not None:
        raise found.failure


def _print_json(result: "FitResult") -> None:
    from retroflow.store.sealed_json import strict_json

    values = {"run_folder": str(result.run_folder), "steps": result.steps, **result.report.to_json()}
    print_result(strict_json(values, what="the report"))


def _print_tables(result: "FitResult") -> None:
    from rich.console import Console

    with writing_results():
        Console(file=result_stream()).print(result.report.render())
    print_result(f"report: {result.run_folder / 'report.json'}")


def split_words(words: list[str], *, resume: bool) -> tuple[list[str], Path | None]:
    """Separate overrides from the path that may follow --resume.

    Returns:
        The overrides, and what to resume: a path, `Path("last")` without one, None without --resume.

    Raises:
        UsageError: more than one path.
    """
    if not resume:
        return words, None
    paths: list[str] = []
    overrides: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        # `--key value` is an override in two words.
        is_value = before.startswith("--") and "=" not in before
        is_override = is_value or word.startswith("--") or ("=" in word and not Path(word).exists())
        (overrides if is_override else paths).append(word)
    if len(paths) > 1:
        raise UsageError(f"--resume takes one run folder or checkpoint; {len(paths)} given: {', '.join(paths)}.")
    return overrides, Path(paths[0]) if paths else Path("last")
