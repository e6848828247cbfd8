"""`retroflow prepare`: make the artifacts of a recipe, without training."""

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retroflow.cli.streams import only_results_on_stdout, print_result
from retroflow.errors import Interrupted, StepDone, UsageError

if TYPE_CHECKING:
    from retroflow.clusters.options import Shares
    from retroflow.pipeline.prepare import Stage
    from retroflow.pipeline.sharing import Sharing
    from retroflow.recipe import Recipe

_KEPT = "finished work is kept, and the same command continues from there."


def prepare(  # noqa: PLR0913  # a command's parameters are its options (docs/decisions/0042)
    recipe: Annotated[Path, typer.Option("--recipe", help="Recipe file (YAML).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides, such as retriever.name=scann neighbours.k=4.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Make nothing; measure rates here, and print hours and disk.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="i/n", help="Make only shard i of n, from 1. auto: torchrun or SLURM decide."),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Join what the shards have made, and make no shard.")] = False,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="How long a shard waits while no other progresses.")
    ] = 600.0,
    step: Annotated[
        bool, typer.Option("--step", help="With --shard or --merge: one stage only, for your own scheduler.")
    ] = False,
    on: Annotated[
        str | None, typer.Option("--on", metavar="slurm|ray|local", help="Run all shards as jobs, and merge them.")
    ] = None,
    shares: Annotated[int | None, typer.Option("--shares", metavar="N", help="With --on: number of shards.")] = None,
    retries: Annotated[
        int | None, typer.Option("--retries", help="With --on: how often a failed job is submitted again. Default: 2.")
    ] = None,
    on_option: Annotated[
        list[str] | None,
        typer.Option("--on-option", metavar="KEY=VALUE", help="With --on: what a job needs; docs/preparing.md."),
    ] = None,
) -> None:
    """Make chunks, embeddings, index and neighbours, or reuse existing ones; docs/preparing.md."""
    from retroflow.distributed.stop_signals import StopRequests, preempted_while_starting

    with preempted_while_starting():
        from retroflow import api
        from retroflow.clusters.options import shares_of_flags
        from retroflow.pipeline.sharing import Shard, Sharing

        sharing = Sharing(None if shard is None else Shard.parse(shard), merge, wait, step)
        divided = shares_of_flags(on, shares, retries, on_option or [], alone=sharing == Sharing())
        loaded = api.load_recipe(recipe, *(overrides or []))
    if dry_run:
        if merge or step:
            raise UsageError("--dry-run estimates a whole preparation; leave out --merge and --step.")
        count = divided.count if divided is not None else sharing.shard.count if sharing.shard is not None else 1
        _plan(loaded, count, as_json=as_json)
        return
    with StopRequests() as requests, requests.at_once(f"stopped; {_KEPT}"):
        try:
            _prepare(loaded, sharing, divided, as_json=as_json)
        except StepDone as done:
            print_result(str(done))
        except KeyboardInterrupt:
            if requests.signal_number == signal.SIGINT:
                raise Interrupted(f"interrupted; {_KEPT}") from None
            raise


def _plan(loaded: "Recipe", shards: int, *, as_json: bool) -> None:
    with only_results_on_stdout():
        from retroflow.planning.preparation import plan_preparation

        plan = plan_preparation(loaded, shards)
        print_result(json.dumps(plan.to_json(), indent=2) if as_json else "\n".join(plan.lines()))


def _prepare(loaded: "Recipe", sharing: "Sharing", shares: "Shares | None", *, as_json: bool) -> None:
    with only_results_on_stdout():
        from retroflow import api
        from retroflow.pipeline.prepare import describe

        def show(stage: "Stage") -> None:
            if not as_json:
                print_result(describe(stage))

        prepared = api.prepare(loaded, report=show, sharing=sharing, shares=shares)
        if as_json:
            print_result(json.dumps({"stages": [_as_json(stage) for stage in prepared.stages]}, indent=2))


def _as_json(stage: "Stage") -> dict[str, object]:
    return {
        "stage": stage.kind,
        "built": stage.built,
        "seconds": round(stage.seconds, 3),
        "folder": str(stage.folder),
        "fingerprint": stage.manifest.fingerprint,
        "info": dict(stage.manifest.info),
    }
