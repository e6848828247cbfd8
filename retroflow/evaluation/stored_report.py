"""A report as it was before it was written to report.json, without the losses of single chunks."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.errors import DamagedDataError
from retroflow.evaluation.leakage import OverlapBucket
from retroflow.evaluation.perplexity import Measure
from retroflow.evaluation.report import Report


def read_report(path: Path) -> Report:
    """Read a report.json.

    Raises:
        DamagedDataError: it cannot be read, or is not one.
    """
    try:
        return _report_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedDataError(
            f"{path}: cannot be read ({error}); make it again with: retroflow evaluate {path.parent}"
        ) from error


def _report_of(values: dict[str, Any]) -> Report:
    measures = {
        mode: Measure(
            nats=measured["nats"],
            tokens=values["predicted_tokens"],
            bytes=values["bytes"],
            seconds=measured["seconds"],
            chunk_nats=np.empty(0),
            chunk_tokens=np.empty(0, dtype=np.int64),
        )
        for mode, measured in values["validation"].items()
    }
    return Report(
        measures=measures,
        without_neighbours=values["share_without_neighbours"],
        overlap=[OverlapBucket(**bucket) for bucket in values["by_overlap"]],
        training=values["training"],
        sample=values["sample"],
    )
