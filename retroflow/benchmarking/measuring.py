"""What is measured of one retriever, in a process that does nothing else.

Building: seconds, the largest memory, bytes on disk. Searching, for each setting: answers and seconds of single queries
and of all of them in one batch, and the memory of the loaded index.

Shapes: q queries, n of them that were timed alone, k neighbours.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.benchmarking.data import BenchData
from retroflow.components import create_retriever
from retroflow.console import progress
from retroflow.errors import UsageError
from retroflow.pipeline.index import build_and_save
from retroflow.pipeline.memory import release_free_memory
from retroflow.planning.machine_memory import peak_memory, reset_peak, resident_memory
from retroflow.protocols import Float32Array, Int64Array
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.retrieval.keys import Keys
from retroflow.store.sealed_arrays import write_arrays

ROUNDS = 3
"""Times that a setting is measured; the fastest round counts, as in ann-benchmarks."""

LEAST_QUERIES = 20
WARM_UP_QUERIES = 20


@dataclass(frozen=True)
class Setting:
    """Search options to measure, and where the result goes.

    Attributes:
        section: the retriever's name and all options.
        search: the options of `search` that are varied.
        file: of the result.
        made_of: its fingerprint.
    """

    section: Mapping[str, Any]
    search: Mapping[str, Any]
    file: Path
    made_of: str


def measure_build(section: Mapping[str, Any], data: BenchData, folder: Path) -> dict[str, Any]:
    """Build the index of a retriever and save it into a new folder.

    Returns:
        seconds; memory, the largest number of bytes more than before (None if unknown); peak, of the whole process;
        disk, bytes of the files; load, average of the machine before and after.
    """
    retriever = create_retriever(section)
    retriever.check_vectors(len(data.keys), data.keys.shape[1])
    release_free_memory()
    load, before = _load(), resident_memory()
    reset_peak()
    started = time.perf_counter()
    build_and_save(folder, Keys(data.keys), retriever)
    seconds, peak = time.perf_counter() - started, peak_memory()
    disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    memory = None if peak is None or before is None else peak - before
    return {"seconds": seconds, "memory": memory, "peak": peak, "disk": disk, "load": [load, _load()]}


def measure_searches(settings: Sequence[Setting], data: BenchData, folder: Path, *, k: int, seconds: float) -> None:
    """Measure settings of an index that was saved, and write the results.

    Args:
        settings: what to measure.
        data: with the queries.
        folder: of the index.
        k: neighbours.
        seconds: for the single queries of a setting, and for its batches; at least one round is made.
    """
    with progress("measuring searches", len(settings), "settings") as advance:
        for setting in settings:
            arrays, about = _measured(setting.section, data.queries, folder, k=k, seconds=seconds)
            arrays["single_distances"] = data.distances(arrays["single_ids"])
            arrays["batch_distances"] = data.distances(arrays["batch_ids"])
            write_arrays(setting.file, arrays, about, setting.made_of)
            advance(1)


def _measured(
    section: Mapping[str, Any], queries: Float32Array, folder: Path, *, k: int, seconds: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    retriever = create_retriever(section)
    release_free_memory()
    load, before = _load(), resident_memory()
    started = time.perf_counter()
    retriever.load(folder)
    load_seconds = time.perf_counter() - started
    retriever.search(queries[:WARM_UP_QUERIES], k)
    single_ids, times = _one_by_one(retriever, queries, k, seconds)
    used = [resident_memory()]
    batch_ids, batch_seconds = _together(retriever, queries, k, seconds)
    used.append(resident_memory())
    most = max((size for size in used if size is not None), default=None)
    about = {
        "load_seconds": load_seconds,
        "batch_seconds": batch_seconds,
        "memory": None if before is None or most is None else most - before,
        "load": [load, _load()],
    }
    return {"single_ids": single_ids, "times": times, "batch_ids": batch_ids}, about


def _one_by_one(
    retriever: CheckedRetriever, queries: Float32Array, k: int, seconds: float
) -> tuple[Int64Array, Float32Array]:
    """Return the answers int64 [n, k] to single queries, and the seconds [n] of the fastest round."""
    count, best, ids = len(queries), np.empty(0), np.empty((0, k), np.int64)
    deadline = time.monotonic() + seconds
    for number in range(ROUNDS):
        if number and time.monotonic() > deadline:
            break
        times, found = [], []
        for row in range(count):
            query = queries[row : row + 1]
            started = time.perf_counter()
            answer = retriever.search(query, k)
            times.append(time.perf_counter() - started)
            found.append(answer.ids)
            if number == 0 and row + 1 >= LEAST_QUERIES and time.monotonic() > deadline:
                break
        count = len(times)  # a later round has the queries of the first
        if not len(best) or sum(times) < best.sum():
            best, ids = np.array(times), np.concatenate(found)
    return ids, best.astype(np.float64)


def _together(retriever: CheckedRetriever, queries: Float32Array, k: int, seconds: float) -> tuple[Int64Array, float]:
    """Return the answers int64 [q, k] to all queries at once, and the seconds of the fastest round."""
    best, ids, deadline = np.inf, np.empty((0, k), np.int64), time.monotonic() + seconds
    for number in range(ROUNDS):
        if number and time.monotonic() > deadline:
            break
        started = time.perf_counter()
        ids = retriever.search(queries, k).ids
        best = min(best, time.perf_counter() - started)
    return ids, float(best)


def _load() -> float | None:
    """Return the machine's load average of the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def true_neighbours(data: BenchData, k: int) -> tuple[Int64Array, Float32Array]:
    """Return ids int64 and distances float32 [q, k] of the nearest vectors, by brute force.

    Raises:
        UsageError: there are fewer than k.
    """
    if len(data.keys) < k:
        raise UsageError(f"k={k}: there are only {len(data.keys):,} vectors; give a smaller number.")
    retriever = create_retriever({"name": "exact"})
    retriever.build(data.keys)
    parts = []
    with progress("true neighbours", len(data.queries), "queries") as advance:
        for start in range(0, len(data.queries), 1_000):
            parts.append(retriever.search(data.queries[start : start + 1_000], k).ids)
            advance(len(parts[-1]))
    ids = np.concatenate(parts)
    distances = data.distances(ids)
    order = np.argsort(distances, axis=1, kind="stable")  # products and differences are rounded differently
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)


def recall_of(distances: Float32Array, true_distances: Float32Array) -> float:
    """Return the share of found vectors that are as near as the k-th true one, so an equal one counts.

    Args:
        distances: float32 [n, k] of what was found, infinite where nothing was.
        true_distances: float32 [q, k] of the first queries and more.
    """
    farthest = true_distances[: len(distances), -1:]
    return float((distances <= farthest * (1 + 1e-6)).mean())
