"""A benchmark: numbers that are true, measured once, and in files that others read."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from retroflow.benchmarking import bench as benching
from retroflow.benchmarking import measuring, worker
from retroflow.benchmarking.choice import choose_index
from retroflow.benchmarking.front import bench, explain
from retroflow.benchmarking.measuring import recall_of
from retroflow.benchmarking.options import BenchOptions, parse_bytes
from retroflow.components import create_retriever
from retroflow.errors import MissingExtraError, Preempted, RetrieverError, UsageError
from tests.training.jobs import Killed

SHAPE = (2_000, 16)
QUICK = {"queries": 40, "seconds": 0.05, "k": 5}


def options(folder: Path, **more: object) -> BenchOptions:
    return BenchOptions(**{**QUICK, "output": str(folder), **more})


def test_recall_is_by_distance_so_that_an_equal_vector_counts() -> None:
    truth = np.array([[1.0, 2.0], [1.0, 2.0]], np.float32)
    assert recall_of(np.array([[1.0, 2.0], [2.0, 2.0]], np.float32), truth) == 1.0
    assert recall_of(np.array([[1.0, 2.1], [np.inf, np.inf]], np.float32), truth) == 0.25
    assert recall_of(np.array([[1.0, 2.1]], np.float32), truth) == 0.5  # only the first queries were timed


def test_every_setting_has_its_numbers_and_the_files_agree(tmp_path, in_this_process) -> None:
    pytest.importorskip("hnswlib")
    found = bench(["exact", "hnsw"], random=SHAPE, options=options(tmp_path / "b"))
    values = found.to_json()
    exact, graph = values["retrievers"]
    assert [setting["recall"] for setting in exact["settings"]] == [1.0]
    recalls = [setting["recall"] for setting in graph["settings"]]
    assert [setting["search"]["ef"] for setting in graph["settings"]] == [10, 16, 32, 64, 128, 256, 512]
    assert recalls[0] < recalls[-1] and recalls[-1] > 0.99
    for setting in (*exact["settings"], *graph["settings"]):
        assert 0 < setting["p50"] <= setting["p90"] <= setting["p99"] and setting["queries"] >= 20
        assert setting["queries_per_second"] > 0 and setting["batch_queries_per_second"] > 0
    assert graph["disk"] > 2_000 * 16 * 4 and graph["build_seconds"] > 0 and values["bench_version"] == 1
    assert json.loads((found.folder / "bench.json").read_text()) == values
    lines = (found.folder / "bench.csv").read_text().splitlines()
    assert len(lines) == 9 and lines[0].startswith("retriever,build_seconds,")
    page = (found.folder / "bench.md").read_text()
    assert page.count("\n| hnsw |") == 8 and "Load of the machine" in page and "2,000 drawn vectors" in page
    assert not (found.folder / "indexes").exists()
    pytest.importorskip("matplotlib")
    assert (found.folder / "bench.png").stat().st_size > 1000 and (found.folder / "bench.svg").exists()


def test_what_was_measured_is_not_measured_again_and_a_killed_command_continues(
    tmp_path, in_this_process, monkeypatch
) -> None:
    pytest.importorskip("hnswlib")
    words, chosen = ["exact", "hnsw"], options(tmp_path / "b")
    write, written = measuring.write_arrays, []

    def killed_at_the_third(path, *rest) -> None:
        written.append(path)
        if len(written) == 3:
            raise Killed
        write(path, *rest)

    monkeypatch.setattr(measuring, "write_arrays", killed_at_the_third)
    with pytest.raises(Killed):
        bench(words, random=SHAPE, options=chosen)
    before = {path: path.read_bytes() for path in (tmp_path / "b" / "rows").iterdir()}
    in_this_process.clear()
    monkeypatch.setattr(measuring, "write_arrays", write)
    first = bench(words, random=SHAPE, options=chosen)
    assert in_this_process == ["searching with hnsw"]  # neither the truth nor the graph again
    assert all(path.read_bytes() == content for path, content in before.items())
    in_this_process.clear()
    again = bench(words, random=SHAPE, options=chosen)
    assert in_this_process == [] and again.to_json()["retrievers"] == first.to_json()["retrievers"]
    bench(["exact"], random=SHAPE, options=options(tmp_path / "b", k=6))
    assert in_this_process == ["searching the true neighbours", "building exact", "searching with exact"]


def test_a_signal_ends_it_with_the_code_of_a_run_that_continues(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(worker, "run", lambda job, **rest: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted, match="^stopped while measuring; the same command continues where it stopped$"):
        bench(["exact"], random=(200, 8), options=options(tmp_path / "b"))


def read_like_ann_benchmarks(folder: Path, dataset: str, count: int, *, batch: bool):
    """Recall and rate of every file, by the reading rules of ann-benchmarks' plot.py.

    It walks results/DATASET/COUNT, opens what ends in .hdf5, passes over files of the other batch_mode, and reads the
    attributes algo, name, count and best_search_time, and the data sets distances and times. An answer counts if its
    distance is at most that of the COUNT-th true neighbour in data/DATASET.hdf5, plus 0.001.
    """
    h5py = pytest.importorskip("h5py")
    found = {}
    with h5py.File(folder / "data" / f"{dataset}.hdf5") as data:
        assert data.attrs["dimension"] == data["test"].shape[1] and data.attrs["distance"] == "euclidean"
        truth = np.array(data["distances"])
    for path in sorted((folder / "results" / dataset / str(count)).rglob("*.hdf5")):
        with h5py.File(path, "r+") as run:
            properties = dict(run.attrs)
            if properties["batch_mode"] != batch:
                continue
            assert path.parent.name == properties["algo"] + "-batch" * batch
            assert {"build_time", "index_size", "candidates", "run_count", "dataset", "distance"} <= set(properties)
            assert run["neighbors"].dtype == np.int32 and run["times"].shape == (len(run["distances"]),)
            hits = [
                sum(distance <= truth[row][properties["count"] - 1] + 1e-3 for distance in distances)
                for row, distances in enumerate(np.array(run["distances"]))
            ]
            recall = float(np.mean(hits)) / properties["count"]
            found[properties["name"]] = recall, 1.0 / properties["best_search_time"]
    return found


def test_ann_benchmarks_reads_the_same_numbers(tmp_path) -> None:
    pytest.importorskip("hnswlib")
    pytest.importorskip("h5py")
    words = ["exact", "hnsw:search.ef=10", "hnsw:build.links=4:search.ef=10"]
    found = bench(words, random=SHAPE, options=options(tmp_path / "b", dataset="mine-16"))
    for batch, key in ((False, "queries_per_second"), (True, "batch_queries_per_second")):
        theirs = read_like_ann_benchmarks(found.folder, "mine-16", 5, batch=batch)
        assert sorted(theirs) == ["exact()", "hnsw:links=4:search.ef=10(ef=10)", "hnsw:search.ef=10(ef=10)"]
        for index in found.values["retrievers"]:
            name = f"{index['retriever'].replace('build.', '')}("
            recall, rate = next(values for label, values in theirs.items() if label.startswith(name))
            assert rate == pytest.approx(index["settings"][0][key], rel=1e-4)
            # They count what is up to 0.001 farther than the k-th neighbour, too.
            assert index["settings"][0]["recall"] <= recall <= index["settings"][0]["recall"] + 0.05


def test_without_h5py_and_matplotlib_a_line_says_so(tmp_path, monkeypatch, caplog) -> None:
    import importlib.util

    find = importlib.util.find_spec
    absent = {"h5py", "matplotlib"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else find(name, *rest))
    said: list[str] = []
    monkeypatch.setattr(benching, "say", said.append)
    found = bench(["exact"], random=(200, 8), options=options(tmp_path / "b"))
    assert 'none for ann-benchmarks: HDF5 files need h5py. Install it with: pip install "retroflow[bench]"' in said
    assert any(line.startswith("no picture: ") for line in said)
    assert not (found.folder / "results").exists() and (found.folder / "bench.json").exists()


def test_one_in_a_process_of_its_own_measures_the_same_and_passes_its_error_on(tmp_path, monkeypatch) -> None:
    monkeypatch.undo()
    found = bench(["exact"], random=(200, 8), options=options(tmp_path / "b", threads=1))
    (index,) = found.values["retrievers"]
    assert index["settings"][0]["recall"] == 1.0 and index["build_peak"] > 1 << 20
    with pytest.raises(UsageError, match="^k=900: there are only 200 vectors; give a smaller number.$"):
        bench(["exact"], random=(200, 8), options=options(tmp_path / "c", k=900))


def test_a_process_that_is_killed_is_named(monkeypatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(worker.sys, "executable", "/bin/false")
    with pytest.raises(
        RetrieverError, match="^building x: the process ended with code 1. Measured settings are kept.$"
    ):
        worker.run({}, threads=1, doing="building x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hnws"], "retriever='hnws': there is no such retriever. Did you mean"),
        (["hnsw:build.linkz=4"], "build.linkz is not a known key"),
        (
            ["bm25"],
            "retriever='bm25': it reads texts, and recall here is of vectors; `retroflow curve --over retriever`",
        ),
        (["exact:build.metric=inner_product"], "its metric is inner_product; distances are measured by l2 here."),
        (["faiss:build.factory=IVF4096,Flat"], "which has 4096 lists, more than the 2000 vectors."),
    ],
)
def test_a_retriever_that_cannot_be_measured_is_refused_before_anything_is_drawn(tmp_path, words, message) -> None:
    for extra in ("hnswlib", "bm25s", "faiss"):
        pytest.importorskip(extra)
    with pytest.raises(UsageError) as raised:
        bench(words, random=SHAPE, options=options(tmp_path / "b"))
    assert message in str(raised.value) and not (tmp_path / "b").exists()


def test_an_index_that_would_not_fit_is_refused_before_it_is_built(tmp_path, in_this_process) -> None:
    pytest.importorskip("hnswlib")
    with pytest.raises(UsageError, match=r"^retriever='hnsw': building its index of 1,000,000 vectors of width 384 "):
        bench(["hnsw"], random=(1_000_000, 384), options=options(tmp_path / "b", memory_limit="500MiB"))
    assert in_this_process == [] and not (tmp_path / "b").exists()


def test_sizes_and_shapes_are_read_and_others_refused() -> None:
    assert parse_bytes("8GiB") == parse_bytes("8g") == 8 << 30 and parse_bytes("1.5 MB") == 3 << 19
    for given in ("", "8 XB", "-1G", "0"):
        with pytest.raises(UsageError, match="give a size such as 8GiB or 500MiB"):
            BenchOptions(memory_limit=given)
    with pytest.raises(UsageError, match="^random='20000': give the number of vectors and their width, such as 2"):
        bench(["exact"], random="20000")
    with pytest.raises(UsageError, match="^dataset='a/b': give letters"):
        BenchOptions(dataset="a/b")
    with pytest.raises(UsageError, match="^model='m': its loss needs the texts of what is found"):
        bench(["exact"], random=SHAPE, model="m")


def test_the_index_that_is_chosen_depends_on_count_and_memory(tmp_path) -> None:
    for extra in ("hnswlib", "faiss"):
        pytest.importorskip(extra)
    chosen = {
        (count, memory): choose_index(count, 384, memory << 20).chosen
        for count, memory in (
            (5_000, 1 << 10),
            (50_000, 1 << 10),
            (50_000, 115),
            (5_000_000, 1 << 15),
            (5_000_000, 1_500),
        )
    }
    assert list(chosen.values()) == ["exact", "hnsw", "faiss", "faiss", "faiss:build.factory=IVF16384,SQfp16"]
    np.save(tmp_path / "few.npy", np.zeros((9, 4), np.float32))
    assert explain(vectors=tmp_path / "few.npy").chosen == "exact"
    found = explain(random=(50_000, 384), options=BenchOptions(memory_limit="1GiB")).to_json()
    assert found["chosen"] == "hnsw" and {"word", "kind", "building", "fits", "why"} <= set(found["options"][0])


@pytest.mark.parametrize("name", ["exact", "faiss", "hnsw", "scann"])
def test_settings_are_options_of_the_search_and_bytes_on_disk_are_as_announced(name, tmp_path) -> None:
    try:
        retriever = create_retriever({"name": name})
    except MissingExtraError:
        pytest.skip("not installed")
    count, dimension = 11_000, 32
    outline = retriever.outline(count, dimension)
    for setting in outline.settings:
        create_retriever({"name": name, "search": dict(setting)})
    vectors = np.random.default_rng(0).normal(size=(count, dimension)).astype(np.float16)
    retriever.build(vectors)
    retriever.save(tmp_path / "index")
    disk = sum(path.stat().st_size for path in (tmp_path / "index").rglob("*") if path.is_file())
    assert disk == pytest.approx(outline.disk, rel=0.15)
    assert re.search(r"\w", outline.kind) and outline.building >= outline.disk * (name != "exact") * 0.5
