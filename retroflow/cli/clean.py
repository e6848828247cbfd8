"""`retroflow clean`: list and remove what no run needs."""

import json
from pathlib import Path
from typing import Annotated

import typer


def clean(
    artifacts: Annotated[Path, typer.Option("--artifacts", help="Folder of artifacts (data.artifacts_folder).")] = Path(
        "artifacts"
    ),
    runs: Annotated[
        list[Path] | None,
        typer.Option("--runs", help="Folder of runs or exported models; may be repeated. Default: runs."),
    ] = None,
    recipe: Annotated[
        list[Path] | None,
        typer.Option("--recipe", help="Recipe whose artifacts are kept, too; may be repeated."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them. Without this nothing is deleted.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List artifacts that no run needs and remains of killed commands; remove them with --yes."""
    from retroflow.console import say
    from retroflow.runs.clean_up import remove, survey
    from retroflow.store.disk import disk_size

    folders = runs or [Path("runs")]
    found = survey(artifacts, folders, recipe or [])
    if not as_json:
        names = " and ".join(map(str, folders))
        say(f"runs in {names}: {len(found.runs)}; artifacts that they need: {len(found.needed)}")
        for path, reason in found.left_alone.items():
            say(f"kept: {path} ({reason})")
    gone, freed = [], 0
    for leftover in remove(found) if yes else found.leftovers:
        gone.append(str(leftover.path))
        freed += leftover.num_bytes
        if not as_json:
            print(f"{disk_size(leftover.num_bytes):>9}  {leftover.path}  ({leftover.reason})", flush=True)
    if as_json:
        print(json.dumps(found.to_json() | {"removed": gone if yes else []}, indent=2, ensure_ascii=False))
    elif not gone:
        print("nothing to remove")
    else:
        print(f"{disk_size(freed):>9}  in total" + (", removed" if yes else "; --yes removes them"))
