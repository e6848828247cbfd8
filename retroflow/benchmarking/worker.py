"""A process that measures one retriever: its memory is the index's, and its end is not that of the command.

`run` starts one; `python -m retroflow.benchmarking.worker FILE` is one. The job and the answer are JSON files.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retroflow import errors
from retroflow.benchmarking.data import Source
from retroflow.benchmarking.measuring import Setting, measure_build, measure_searches, true_neighbours
from retroflow.console import say
from retroflow.distributed.parent_death import end_with_parent
from retroflow.errors import RetrieverError, RetroflowError
from retroflow.planning.machine_memory import available_cores
from retroflow.store.sealed_arrays import write_arrays

SECONDS_BETWEEN_LINES = 60.0

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run(job: Mapping[str, Any], *, threads: int, doing: str) -> dict[str, Any]:
    """Do a job in a process of its own, and return its answer.

    Args:
        job: see `do`.
        threads: that it may use.
        doing: what it does, for messages.

    Raises:
        RetroflowError: the job's own error.
        RetrieverError: the process ended without an answer.
    """
    with tempfile.TemporaryDirectory(prefix="retroflow-bench-") as folder:
        file, answer = Path(folder) / "job.json", Path(folder) / "answer.json"
        file.write_text(json.dumps({**job, "answer": str(answer), "threads": threads, "parent": os.getpid()}))
        environment = {**os.environ, **dict.fromkeys(_THREADS, str(threads))}
        process = subprocess.Popen([sys.executable, "-m", __name__, str(file)], env=environment)
        try:
            _wait(process, doing)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if not answer.is_file():
            code = process.returncode
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            memory = " The system may have run out of memory." if code == -9 else ""
            raise RetrieverError(f"{doing}: the process {how}.{memory} Measured settings are kept.")
        found: dict[str, Any] = json.loads(answer.read_text())
    if "error" in found:
        raise getattr(errors, found["error"])(found["message"])
    return found


def _wait(process: "subprocess.Popen[bytes]", doing: str) -> None:
    started = time.monotonic()
    while True:
        try:
            process.wait(timeout=SECONDS_BETWEEN_LINES)
        except subprocess.TimeoutExpired:
            say(f"{doing}: {time.monotonic() - started:,.0f} s so far")
        else:
            return


def do(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job in this process.

    Args:
        job: its task ("truth", "build" or "search"), the source of the vectors, and what the task needs.
    """
    data = Source.from_json(job["source"]).open()
    if job["task"] == "truth":
        ids, distances = true_neighbours(data, job["k"])
        write_arrays(Path(job["file"]), {"ids": ids, "distances": distances}, {}, job["made_of"])
        return {}
    if job["task"] == "build":
        return measure_build(job["section"], data, Path(job["index"]))
    settings = [Setting(one["section"], one["search"], Path(one["file"]), one["made_of"]) for one in job["settings"]]
    measure_searches(settings, data, Path(job["index"]), k=job["k"], seconds=job["seconds"])
    return {}


def main(file: Path) -> None:
    """Do the job of a file and write the answer."""
    job = json.loads(file.read_text())
    end_with_parent(job["parent"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the keyboard; the parent gets it, too, and ends this process
    if job["threads"] < available_cores() and hasattr(os, "sched_setaffinity"):
        # Some libraries take as many threads as there are cores, whatever OpenMP was told.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-job["threads"] :])
    try:
        answer = do(job)
    except RetroflowError as error:
        name = type(error).__name__ if hasattr(errors, type(error).__name__) else "RetroflowError"
        answer = {"error": name, "message": str(error)}
    partial = Path(job["answer"] + ".partial")
    partial.write_text(json.dumps(answer))
    partial.rename(job["answer"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
