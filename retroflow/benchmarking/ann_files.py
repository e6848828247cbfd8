"""Results as HDF5 files in the layout of ann-benchmarks; the only file that imports h5py.

    results/DATASET/K/ALGORITHM[-batch]/ARGUMENTS.hdf5
        attributes algo, name, dataset, distance, count, batch_mode, run_count, build_time (s), index_size (kB),
        best_search_time (s per query), candidates, expect_extra; times [n] (s), `neighbors` int32 [n, k] (-1: none),
        distances float32 [n, k] (infinite: none)
    data/DATASET.hdf5
        attributes type, distance, dimension, point_type; test [q, D], `neighbors` and distances [q, k] of brute force

Source: ann_benchmarks/results.py and datasets.py of github.com/erikbern/ann-benchmarks, commit f402b2c. Its plot.py and
data_export.py read these. `train`, which only its run.py reads, is left out: it would be a copy of the vectors.

Shapes: q queries, n of them that were timed alone, k neighbours, D width.
"""

import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroflow.errors import MissingExtraError
from retroflow.protocols import Float32Array, Int64Array

DISTANCE = "euclidean"


@dataclass(frozen=True)
class Answers:
    """Answers to queries, and how long they took.

    Attributes:
        ids: int64 [n, k], -1 for none.
        distances: float32 [n, k].
        times: seconds of each query, [n].
        batch: whether they were asked together.
    """

    ids: Int64Array
    distances: Float32Array
    times: NDArray[np.float64]
    batch: bool


def check_h5py() -> None:
    """Refuse to write HDF5 without h5py.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec("h5py") is None:
        raise MissingExtraError('HDF5 files need h5py. Install it with: pip install "retroflow[bench]"')


def write_answers(folder: Path, answers: Answers, about: Mapping[str, Any]) -> Path:
    """Write the answers of a setting, and return the file.

    Args:
        folder: with `results/`.
        answers: what was found.
        about: algo, arguments (JSON values), dataset, build_time, index_size.

    Raises:
        MissingExtraError: h5py is not installed.
    """
    check_h5py()
    import h5py

    count = answers.ids.shape[1]
    algorithm = re.sub(r"\W+", "_", about["algo"])
    arguments = re.sub(r"\W+", "_", json.dumps(about["arguments"], sort_keys=True)).strip("_") or "default"
    place = folder / "results" / about["dataset"] / str(count) / (algorithm + "-batch" * answers.batch)
    place.mkdir(parents=True, exist_ok=True)
    given = ", ".join(f"{key}={value}" for key, value in about["arguments"].items())
    path: Path = place / f"{arguments}.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs.update(
            algo=algorithm,
            name=f"{about['algo']}({given})",
            dataset=about["dataset"],
            distance=DISTANCE,
            count=count,
            batch_mode=answers.batch,
            run_count=about["rounds"],
            build_time=about["build_time"],
            index_size=about["index_size"],
            best_search_time=float(answers.times.mean()),
            candidates=float((answers.ids >= 0).sum(axis=1).mean()),
            expect_extra=False,
        )
        file["times"] = answers.times.astype(np.float32)
        file["neighbors"] = answers.ids.astype(np.int32)
        file["distances"] = answers.distances
    return path


def write_dataset(folder: Path, name: str, queries: Float32Array, ids: Int64Array, distances: Float32Array) -> None:
    """Write the queries and their true neighbours.

    Args:
        folder: with `data/`.
        name: of the data set.
        queries: [q, D].
        ids, distances: [q, k], the nearest first.

    Raises:
        MissingExtraError: h5py is not installed.
    """
    check_h5py()
    import h5py

    (folder / "data").mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "data" / f"{name}.hdf5", "w") as file:
        file.attrs.update(type="dense", distance=DISTANCE, dimension=queries.shape[1], point_type="float")
        file["test"], file["neighbors"], file["distances"] = queries, ids.astype(np.int32), distances
