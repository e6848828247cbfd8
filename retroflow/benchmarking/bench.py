"""`retroflow bench`: recall against speed, build time, memory and disk of retrievers on the same vectors.

    FOLDER/truth.npz            true neighbours by brute force
    FOLDER/rows/*.npz           answers and times of a setting, sealed (store/sealed_arrays.py)
    FOLDER/builds/*.json        seconds and bytes of a build, sealed
    FOLDER/indexes/             the index that is being measured; deleted afterwards
    FOLDER/results, FOLDER/data for ann-benchmarks (ann_files.py)
    FOLDER/bench.json, .csv, .md, .png, .svg
    FOLDER/retriever.json, .csv, loss.png, .svg  with a model (losses.py)

The folder is named by a fingerprint of the vectors and queries. A command that is started again measures only what is
missing, as `retroflow curve` does.
"""

import hashlib
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.benchmarking import worker
from retroflow.benchmarking.ann_files import Answers, check_h5py, write_answers, write_dataset
from retroflow.benchmarking.choice import Choice, choose_index
from retroflow.benchmarking.data import BenchData, Source
from retroflow.benchmarking.entries import Entry, check_memory, entries_of
from retroflow.benchmarking.losses import Judge
from retroflow.benchmarking.measuring import ROUNDS, recall_of
from retroflow.benchmarking.options import BenchOptions
from retroflow.benchmarking.results import Bench
from retroflow.comparison.compare import locked
from retroflow.console import say
from retroflow.distributed.stop_signals import StopRequests
from retroflow.errors import DamagedDataError, MissingExtraError, UsageError
from retroflow.pictures.plots import plot_losses, plot_recall
from retroflow.planning.machine_memory import main_memory
from retroflow.protocols import Float32Array
from retroflow.store.atomic import canonical_json
from retroflow.store.disk import disk_size
from retroflow.store.sealed_arrays import read_arrays
from retroflow.store.sealed_json import read_sealed, render_sealed, write_text

FOLDER = "benchmarks"
AUTO = "auto"
STOPPED = "stopped while measuring; the same command continues where it stopped"

_LIBRARIES = ("numpy", "torch", "faiss-cpu", "faiss-gpu", "hnswlib", "scann", "usearch")


def choice_for(source: Source, options: BenchOptions) -> Choice:
    """Say which index fits the vectors and the memory; builds nothing.

    Raises:
        UsageError: the vectors cannot be read.
    """
    # One query, so that a few vectors are enough.
    count, dimension = source.random or replace(source, queries=1).open().keys.shape
    return choose_index(count, dimension, options.memory)


def measure(words: Sequence[str], source: Source, options: BenchOptions, judge: Judge | None = None) -> Bench:
    """Measure what is missing, and write the files.

    Args:
        words: of retrievers, "auto" for what `choice_for` chooses; the usual ones if there are none.
        source: of the vectors.
        options: how to measure.
        judge: a model whose loss is measured with each setting, too.

    Raises:
        UsageError: a retriever is unknown or unfit, or its index would not fit into memory or on the disk.
        RetroflowError: a library is not installed, a retriever failed, or a file cannot be written.
        Preempted, Interrupted: a signal came; the same command continues.
    """
    if judge is not None:
        judge.check()
    if source.random is not None:  # before anything is drawn
        _check(words, source.random, options)
    data = source.open()
    entries = _check(words, (len(data.keys), data.keys.shape[1]), options)
    name = options.dataset or data.name
    folder = Path(options.output or Path(FOLDER) / f"{data.name}-{data.fingerprint[:8]}")
    with locked(folder):
        measuring = _Measuring(data, source, options, folder, name)
        with StopRequests() as requests, requests.at_once(STOPPED):
            truth = measuring.truth()
            found = [measuring.measured(entry, entries[place + 1 :], truth) for place, entry in enumerate(entries)]
        shutil.rmtree(folder / "indexes", ignore_errors=True)
        values = {
            "data": {
                "name": name,
                "described": data.described,
                "vectors": len(data.keys),
                "dimension": data.keys.shape[1],
                "queries": len(data.queries),
                "definition": dict(data.definition),
                "fingerprint": data.fingerprint,
            },
            "k": options.k,
            "machine": _machine(options.cores),
            "retrievers": found,
            "command": _command(),
            "date": time.strftime("%Y-%m-%d"),
        }
        losses = None if judge is None else judge.losses(entries, folder)
        made = Bench(values, folder, losses)
        made.write()
        _draw(made)
    return made


def _check(words: Sequence[str], shape: tuple[int, int], options: BenchOptions) -> list[Entry]:
    count, dimension = shape
    chosen = [choose_index(count, dimension, options.memory).chosen if word == AUTO else word for word in words]
    entries = entries_of(chosen, count, dimension)
    check_memory(entries, options.memory, count=count, dimension=dimension)
    return entries


@dataclass(frozen=True)
class _Measuring:
    """Measures retrievers, and keeps what was measured."""

    data: BenchData
    source: Source
    options: BenchOptions
    folder: Path
    name: str

    def truth(self) -> Float32Array:
        """Return the distances float32 [q, k] of the true neighbours."""
        path, made_of = self.folder / "truth.npz", self._digest("truth")
        found = read_arrays(path, made_of)
        if found is None:
            job = {"task": "truth", "k": self.options.k, "file": str(path.absolute()), "made_of": made_of}
            self._run(job, "searching the true neighbours")
            found = read_arrays(path, made_of)
        assert found is not None
        try:
            write_dataset(self.folder, self.name, self.data.queries, found[0]["ids"], found[0]["distances"])
        except MissingExtraError as error:
            say(f"none for ann-benchmarks: {error}")
        distances: Float32Array = found[0]["distances"]
        return distances

    def measured(self, entry: Entry, later: Sequence[Entry], truth: Float32Array) -> dict[str, Any]:
        """Return the JSON values of a retriever; measures what is missing of it.

        Args:
            entry: the retriever.
            later: others, which may search the same index.
            truth: distances [q, k] of the true neighbours.
        """
        own = self._digest(entry.index)
        built_file, index = self.folder / "builds" / f"{own[:16]}.json", self.folder / "indexes" / own[:16]
        settings = [self._setting(entry, search, own) for search in entry.settings]
        missing = [one for one in settings if read_arrays(Path(one["file"]), one["made_of"]) is None]
        built = self._read_build(built_file)
        if missing or built is None:
            built = self._build(entry, built_file, index) if built is None or not index.is_dir() else built
            job = {"task": "search", "index": str(index.absolute()), "settings": missing, "k": self.options.k}
            self._run({**job, "seconds": self.options.seconds}, f"searching with {entry.label}")
            if all(other.index != entry.index for other in later):
                shutil.rmtree(index, ignore_errors=True)
        rows = [self._row(entry, one, truth, built) for one in settings]
        loads = [*built["load"], *(load for row in rows for load in row["load"])]
        return {
            "retriever": entry.label,
            "options": dict(entry.section),
            "library": dict(entry.fingerprint),
            "kind": entry.section["name"] if entry.outline is None else entry.outline.kind,
            "estimate": None if entry.outline is None else {"building": entry.outline.building},
            "build_seconds": built["seconds"],
            "build_memory": built["memory"],
            "build_peak": built["peak"],
            "memory": max((row["memory"] for row in rows if row["memory"] is not None), default=None),
            "disk": built["disk"],
            "load": loads,
            "settings": rows,
        }

    def _build(self, entry: Entry, file: Path, index: Path) -> dict[str, Any]:
        if entry.outline is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if entry.outline.disk > free:
                raise UsageError(
                    f"output='{self.folder}': the index of {entry.label} takes about {disk_size(entry.outline.disk)}, "
                    f"and {disk_size(free)} are free; free space, or give another folder."
                )
        partial = index.with_name(f"{index.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        job = {"task": "build", "section": dict(entry.section), "index": str(partial.absolute())}
        say(f"building {entry.label}: {'' if entry.outline is None else entry.outline.kind}")
        built = self._run(job, f"building {entry.label}")
        partial.rename(index)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, render_sealed(built, what=str(file)))
        return built

    def _read_build(self, file: Path) -> dict[str, Any] | None:
        with suppress(FileNotFoundError, DamagedDataError):
            return read_sealed(file, remedy="")
        return None

    def _setting(self, entry: Entry, search: Mapping[str, Any], own: str) -> dict[str, Any]:
        section = entry.with_search(search)
        made_of = self._digest([own, section.get("search"), self.options.seconds, ROUNDS])
        file = self.folder / "rows" / f"{entry.section['name']}-{made_of[:16]}.npz"
        return {"section": section, "search": dict(search), "file": str(file.absolute()), "made_of": made_of}

    def _row(self, entry: Entry, setting: dict[str, Any], truth: Float32Array, built: dict[str, Any]) -> dict[str, Any]:
        found = read_arrays(Path(setting["file"]), setting["made_of"])
        assert found is not None
        arrays, about = found
        times, batch = arrays["times"], about["batch_seconds"] / len(self.data.queries)
        row: dict[str, Any] = {"search": setting["search"], "recall": recall_of(arrays["batch_distances"], truth)}
        row["queries_per_second"], row["batch_queries_per_second"] = 1 / float(times.mean()), 1 / batch
        for percent in (50, 90, 99):
            row[f"p{percent}"] = float(np.percentile(times, percent)) * 1e3
        row |= {"queries": len(times), "load_seconds": about["load_seconds"]}
        row |= {"memory": about["memory"], "load": about["load"]}
        described = {
            "algo": entry.label.replace("build.", ""),
            "arguments": setting["search"],
            "dataset": self.name,
            "rounds": ROUNDS,
            "build_time": built["seconds"],
            "index_size": (about["memory"] or 0) / 1024,
        }
        with suppress(MissingExtraError):  # said once already
            check_h5py()
            alone = Answers(arrays["single_ids"], arrays["single_distances"], times, batch=False)
            spread = np.full(len(self.data.queries), batch)
            together = Answers(arrays["batch_ids"], arrays["batch_distances"], spread, batch=True)
            files = [write_answers(self.folder, answers, described) for answers in (alone, together)]
            row["hdf5"] = [str(file.relative_to(self.folder)) for file in files]
        return row

    def _run(self, job: dict[str, Any], doing: str) -> dict[str, Any]:
        return worker.run({**job, "source": self.source.to_json()}, threads=self.options.cores, doing=doing)

    def _digest(self, values: Any) -> str:
        made_of = [self.data.fingerprint, dict(self.data.definition), self.options.k, self.options.cores, values]
        return hashlib.sha256(canonical_json(made_of)).hexdigest()


def _machine(threads: int) -> dict[str, Any]:
    versions = {}
    for library in _LIBRARIES:
        with suppress(ModuleNotFoundError):
            versions[library] = version(library)
    memory = main_memory()
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory": None if memory is None else memory[0],
        "python": f"Python {platform.python_version()}",
        "versions": versions,
    }


def _command() -> str:
    is_command = sys.argv[1:2] == ["bench"]
    return shlex.join(["retroflow", *sys.argv[1:]]) if is_command else "retroflow.benchmarking.front.bench(...)"


def _cpu() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def _draw(made: Bench) -> None:
    """Draw the picture; without matplotlib only a line says so."""
    try:
        for ending in (".png", ".svg"):
            plot_recall(made.to_json(), made.folder / f"bench{ending}")
            if made.losses is not None:
                plot_losses(made.losses.to_json(), made.folder / f"loss{ending}")
    except MissingExtraError as error:
        say(f"no picture: {error}")
