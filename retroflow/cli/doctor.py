"""`retroflow doctor`: find problems of this machine and their solutions."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    folder: Annotated[Path, typer.Argument(help="Folder for runs and artifacts.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check versions, extras, GPUs, processes, memory, disks and plugins; exit with 1 if there is a problem."""
    from retroflow.doctor.components import ComponentCheck

    results = []
    with ComponentCheck() as check:  # in the background, while this process imports torch and checks the machine
        from retroflow.doctor.machine import check_machine, to_json

        for result in check_machine(folder, check.results):
            results.append(result)
            if not as_json:
                print(f"{result.state:<8} {result.name}: {result.text}", flush=True)
                if result.remedy:
                    print(f"{'':<8} -> {result.remedy}", flush=True)
    if as_json:
        print(to_json(results))
    problems = sum(result.state == "problem" for result in results)
    if problems and not as_json:
        print(f"{problems} problem{'s' if problems > 1 else ''}")
    if problems:
        raise typer.Exit(1)
