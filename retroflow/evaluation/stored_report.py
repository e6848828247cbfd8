"""The stored report of a run, to print it again as `fit` did or to compare it with another run's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group

from retroflow.errors import DamagedDataError, UsageError
from retroflow.evaluation.intervals import Interval
from retroflow.evaluation.leakage import OverlapBucket
from retroflow.evaluation.opponents import Opponents
from retroflow.evaluation.perplexity import Measure
from retroflow.evaluation.report import Lookups, Report, said
from retroflow.runs.folder import RunFolder
from retroflow.store.sealed_json import strict_json


@dataclass(frozen=True)
class StoredReport:
    """The content of report.json.

    Attributes:
        values: all of it.
        report: its numbers, without those of single chunks.
        findings: the stored remarks.
    """

    values: dict[str, Any]
    report: Report
    findings: list[str]

    def render(self) -> Group:
        """Return what `fit` printed, for rich."""
        return Group(*self.report.tables(), *said(self.report.warnings, self.findings))

    def to_json(self) -> str:
        """Return the stored values on one line."""
        return strict_json(self.values, what="the report")


def read_report(run_folder: Path) -> StoredReport:
    """Read a run's report.json.

    Raises:
        UsageError: it is not a run folder, or has no report.
        DamagedDataError: `fit` did not write the report like this.
    """
    file = RunFolder(run_folder).report
    if not file.exists():
        if not run_folder.is_dir():
            raise UsageError(f'there is no folder "{run_folder}"; give a run folder, such as runs/retro_small/0001.')
        raise UsageError(
            f'"{run_folder}" has no report.json: it is not a run folder, or its training has not ended. `retroflow '
            f"evaluate {run_folder}` measures the newest checkpoint of a run."
        )
    values = RunFolder(run_folder).stored_report()
    try:
        report = Report(
            measures=_measures(values),
            without_neighbours=float(values["share_without_neighbours"]),
            overlap=[OverlapBucket(**bucket) for bucket in values["by_overlap"]],
            training=dict(values["training"]),
            measured=dict(values["measured"]),
            sample=values["sample"],
            lookups=values["lookups"] and Lookups(**values["lookups"]),
            intervals=_intervals(values["intervals"]),
            warnings=[str(warning) for warning in values["warnings"]],
            opponents=_opponents(values["opponents"]) if "opponents" in values else None,
        )
        findings = [str(finding) for finding in values["findings"]]
        report.measures["off"], report.tables()
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise DamagedDataError(
            f"{file}: not a report that fit writes ({type(error).__name__}: {error}). `retroflow evaluate "
            f"{run_folder}` makes it again."
        ) from error
    return StoredReport(values, report, findings)


def _opponents(values: dict[str, Any]) -> Opponents:
    return Opponents(
        measures=_measures(values),
        sequences=int(values["sequences"]),
        of=int(values["of"]),
        documents=int(values["documents"]),
        trained=dict(values["trained"]),
        intervals=_intervals(values["intervals"]),
    )


def _intervals(values: dict[str, Any]) -> dict[str, Interval | None]:
    return {name: bounds and (float(bounds[0]), float(bounds[1])) for name, bounds in values.items()}


def _measures(values: dict[str, Any]) -> dict[str, Measure]:
    nothing, tokens = np.empty(0), int(values["predicted_tokens"])
    return {
        mode: Measure(
            nats=float(measured["nats"]),
            tokens=tokens,
            bytes=int(values["bytes"]),
            seconds=float(measured["seconds"]),
            chunk_nats=nothing,
            chunk_tokens=nothing.astype(np.int64),
        )
        for mode, measured in dict(values["validation"]).items()
    }
