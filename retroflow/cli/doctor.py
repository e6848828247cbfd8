"""`retroflow doctor`: whether this machine can do what retroflow does, and what to mend."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    folder: Annotated[Path, typer.Argument(help="Where runs and artifacts would be made.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look at versions, extras, GPUs, processes, memory, disks and plugins; exit with 1 if something must be mended."""
    from retroflow.doctor.components import ComponentCheck

    findings = []
    with ComponentCheck() as check:  # works while this process imports torch and looks at the machine
        from retroflow.doctor.machine import examine, to_json

        for finding in examine(folder, check.results):
            findings.append(finding)
            if not as_json:
                print(f"{finding.state:<8} {finding.name}: {finding.text}", flush=True)
                if finding.remedy:
                    print(f"{'':<8} -> {finding.remedy}", flush=True)
    if as_json:
        print(to_json(findings))
    problems = sum(finding.state == "problem" for finding in findings)
    if problems and not as_json:
        print(f"{problems} to be mended")
    if problems:
        raise typer.Exit(1)
