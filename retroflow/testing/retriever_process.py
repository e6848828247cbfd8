"""The fresh process in which RetrieverContract does what must not share, or could kill, the one that tests.

`python -m retroflow.testing.retriever_process <job.json>`: makes the retriever again by importing the test class,
then does one job and prints a JSON line per case, so that a crash shows which case it was in.
"""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.errors import RetroflowError
from retroflow.protocols import Retriever
from retroflow.retrieval.checked import CheckedRetriever

PATIENCE_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the process is to do, and how to make the retriever there.

    Attributes:
        action: "open", "bad_vectors", "damage" or "fork".
        module, file, class_name: of the test class whose `make_retriever` is called.
        path: sys.path of the testing process.
        folder: scratch folder; holds vectors.npy, queries.npy and for "open" and "damage" a saved index.
    """

    action: str
    module: str
    file: str
    class_name: str
    path: list[str]
    folder: str


def run(job: Job) -> dict[str, str]:
    """Run job in a new process; returns its cases and outcomes, the last one "died ..." if it did not end well."""
    job_file = Path(job.folder) / "job.json"
    job_file.write_text(json.dumps(asdict(job)), encoding="utf-8")
    command = [sys.executable, "-m", "retroflow.testing.retriever_process", str(job_file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in job.path if entry)}
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {job.action: f"died: still running after {PATIENCE_SECONDS} s"}
    outcomes: dict[str, str] = {}
    for line in ended.stdout.splitlines():
        if line.startswith('{"case"'):
            record = json.loads(line)
            outcomes[record["case"]] = record["outcome"]
    if ended.returncode:
        running = list(outcomes)[-1] if outcomes else job.action
        outcomes[running] = f"died with exit status {ended.returncode}: {ended.stderr.strip()[-500:]}"
    return outcomes


def _retriever(job: Job) -> Retriever:
    """Import the test class as pytest did, by name where that leads to the same file, else by file."""
    try:
        module = importlib.import_module(job.module)
        found = Path(module.__file__ or "").resolve() == Path(job.file).resolve()
    except ImportError:
        found = False
    if not found:
        specification = importlib.util.spec_from_file_location(job.module, job.file)
        if specification is None or specification.loader is None:
            raise ImportError(f"cannot import {job.file}")
        module = importlib.util.module_from_spec(specification)
        sys.modules[job.module] = module
        specification.loader.exec_module(module)
    test: Any = module
    for name in job.class_name.split("."):
        test = getattr(test, name)
    made: Retriever = test().make_retriever()
    return made


def _report(case: str, outcome: str) -> None:
    print(json.dumps({"case": case, "outcome": outcome}), flush=True)


def _attempt(case: str, action: Callable[[], object]) -> None:
    """Report "ok" or the name of the error class; "running" stays if the process dies."""
    _report(case, "running")
    try:
        action()
    except RetroflowError as error:
        _report(case, type(error).__name__)
    except Exception as error:  # a leaking exception is what is looked for
        _report(case, f"leaked {type(error).__name__}: {error}")
    else:
        _report(case, "ok")


def _open(job: Job, vectors: Any, queries: Any) -> None:
    folder = Path(job.folder)
    retriever = CheckedRetriever(_retriever(job), owner="the retriever under test")
    retriever.load(folder / "index")
    ids, scores = retriever.search(queries, 5)
    np.savez(folder / "answer.npz", ids=ids, scores=scores)
    _report("open", "ok")


def _bad_vectors(job: Job, vectors: Any, queries: Any) -> None:
    damaged = {}
    for name, value in {"nan": np.nan, "inf": np.inf, "huge": 1e30}.items():
        damaged[name] = vectors.copy()
        damaged[name][len(vectors) // 2, 1] = value
    damaged.update(all_nan=np.full_like(vectors, np.nan), one_dimension=vectors[0], integers=vectors.astype(np.int32))
    for name, bad in damaged.items():
        retriever = CheckedRetriever(_retriever(job), owner="the retriever under test")

        def build_and_search(retriever: CheckedRetriever = retriever, bad: Any = bad) -> None:
            retriever.build(bad)
            retriever.search(queries, 5)

        _attempt(name, build_and_search)
    unbuilt = CheckedRetriever(_retriever(job), owner="the retriever under test")
    _attempt("search_before_build", lambda: unbuilt.search(queries, 5))
    _attempt("save_before_build", lambda: unbuilt.save(Path(job.folder) / "unbuilt"))


def _damage(job: Job, vectors: Any, queries: Any) -> None:
    saved, copy = Path(job.folder) / "index", Path(job.folder) / "damaged"
    noise = np.random.default_rng(0)
    for path in sorted(file for file in saved.rglob("*") if file.is_file()):
        content = path.read_bytes()
        kinds = {
            "missing": None,
            "empty": b"",
            "truncated": content[: len(content) // 2],
            "garbage": noise.integers(0, 256, len(content), dtype=np.uint8).tobytes(),
        }
        for kind, damaged in kinds.items():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(saved, copy)
            target = copy / path.relative_to(saved)
            target.unlink()
            if damaged is not None:
                target.write_bytes(damaged)
            retriever = CheckedRetriever(_retriever(job), owner="the retriever under test")

            def load_and_search(retriever: CheckedRetriever = retriever) -> None:
                retriever.load(copy)
                retriever.search(queries, 5)

            _attempt(f"{kind} {path.relative_to(saved).as_posix()}", load_and_search)


def _fork(job: Job, vectors: Any, queries: Any) -> None:
    retriever = CheckedRetriever(_retriever(job), owner="the retriever under test")
    retriever.build(vectors)
    expected = retriever.search(queries, 5)
    child = os.fork()
    if child == 0:
        try:
            equal = np.allclose(retriever.search(queries, 5).scores, expected.scores, atol=1e-4)
            _report("child", "ok" if equal else "another answer than its parent")
        except RetroflowError as error:
            _report("child", type(error).__name__)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


_ACTIONS: dict[str, Callable[[Job, Any, Any], None]] = {
    "open": _open,
    "bad_vectors": _bad_vectors,
    "damage": _damage,
    "fork": _fork,
}


def main() -> None:
    """Do the job described by the file named on the command line."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    vectors = np.load(Path(job.folder) / "vectors.npy")
    queries = np.load(Path(job.folder) / "queries.npy")
    _ACTIONS[job.action](job, vectors, queries)


if __name__ == "__main__":
    main()
