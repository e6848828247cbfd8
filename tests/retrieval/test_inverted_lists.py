"""Inverted lists on disk: the bytes and the answers of faiss, without its memory."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from retroflow.errors import RetrieverError
from retroflow.retrieval import faiss_choices, inverted_lists
from retroflow.retrieval.keys import Keys
from retroflow.testing.clustered import clustered_vectors

faiss = pytest.importorskip("faiss")
ours = pytest.importorskip("retroflow.retrieval.faiss")
search_parameters = pytest.importorskip("retroflow.retrieval.faiss_library").search_parameters

STATUS = Path("/proc/self/status")
VECTORS = clustered_vectors(2_000, 32)
QUERIES = clustered_vectors(2_100, 32)[2_000:]

# What a build holds is what differs, so few lists will do: training 1,024 of them would be most of the time.
PEAK = f"""
import sys
import tempfile
from pathlib import Path
import numpy as np
from retroflow.retrieval.faiss import FaissBuild, FaissRetriever, FaissSearch
from retroflow.retrieval.keys import Keys

class Vectors:
    def __init__(self, count): self.shape = (count, 256)
    def __len__(self): return self.shape[0]
    def __getitem__(self, rows):
        start, stop, _ = rows.indices(len(self))
        return np.random.default_rng(start).normal(size=(stop - start, 256)).astype(np.float16)

new = lambda: FaissRetriever(build=FaissBuild(factory="IVF256,SQfp16"), search=FaissSearch(nprobe=16))
with tempfile.TemporaryDirectory() as folder:
    built = new()
    built.build(Keys(Vectors(int(sys.argv[1]))))
    built.save(Path(folder))
    opened = new()
    opened.load(Path(folder))
    opened.search(Keys(Vectors(1024)[0:1024].astype(np.float32)), 16)
print(next(line.split()[1] for line in open("{STATUS}") if line.startswith("VmHWM")))
"""


def made(factory: str, metric: str = "l2", **build: int) -> "ours.FaissRetriever":
    return ours.FaissRetriever(
        build=ours.FaissBuild(factory=factory, metric=metric, **build), search=ours.FaissSearch(nprobe=8)
    )


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
@pytest.mark.parametrize("factory", ["IVF64,SQfp16", "IVF64,SQ8", "IVF64,Flat", "IVF16,PQ8x4", "IVF64_HNSW16,SQfp16"])
def test_the_file_and_the_answers_are_those_of_faiss(
    factory: str, metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "GROUP_BYTES", 5_000)
    monkeypatch.setattr(ours, "MAPPED_BYTES", 9_000)
    monkeypatch.setattr(ours, "QUERY_ROWS", 33)
    monkeypatch.setattr(inverted_lists, "WRITE_BYTES", 20_000)
    retriever = made(factory, metric)
    retriever.build(Keys(VECTORS))
    retriever.save(tmp_path)
    retriever.search(Keys(QUERIES), 5)
    assert retriever._unwritten is None  # searched without having been saved and loaded: in memory now
    faiss.write_index(retriever._index, str(tmp_path / "whole.faiss"))
    assert (tmp_path / "whole.faiss").read_bytes() == (tmp_path / "index.faiss").read_bytes()
    opened = made(factory, metric)
    opened.load(tmp_path)
    assert opened._mapped is not None
    found = opened.search(Keys(QUERIES), 5)
    parameters = search_parameters(retriever._index, ours.FaissSearch(nprobe=8), 5)
    distances, ids = retriever._index.search(QUERIES, 5, params=parameters)
    assert np.array_equal(found.ids, ids)
    assert np.allclose(found.scores, -distances if metric == "l2" else distances, atol=1e-6)
    assert np.array_equal(retriever.search(Keys(QUERIES), 5).ids, ids)


def test_an_index_that_was_loaded_is_saved_whole(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    retriever = made("IVF64,SQfp16")
    retriever.build(Keys(VECTORS))
    retriever.save(first)
    retriever.load(first)
    retriever.save(second)
    assert (first / "index.faiss").read_bytes() == (second / "index.faiss").read_bytes()


def test_ranges_of_lists_cover_what_is_probed_within_the_budget() -> None:
    probed = np.array([[9, 2, -1], [2, 5, 7]])
    sizes = np.array([0, 0, 40, 0, 0, 70, 0, 10, 0, 20])
    assert list(inverted_lists.groups_of_lists(probed, sizes, 60)) == [(2, 3, 40), (5, 6, 70), (7, 10, 30)]
    assert list(inverted_lists.groups_of_lists(probed, sizes, 1_000)) == [(2, 10, 140)]
    assert list(inverted_lists.groups_of_lists(np.full((2, 2), -1), sizes, 60)) == []


def test_a_faiss_that_writes_lists_in_another_way_is_refused() -> None:
    with pytest.raises(RetrieverError, match="writes inverted lists in a format"):
        inverted_lists.filled_header(b"IwSq and another ending", np.array([1, 2]), 4)


@pytest.mark.parametrize("lists", [1, 1_024, 16_384])
def test_a_sample_for_lists_on_disk_has_a_bound_of_its_own(lists: int) -> None:
    size = faiss_choices.sample_size(lists, 384, on_disk=True)
    assert 8 * lists <= size <= max(8 * lists, (24 << 20) // (4 * 384))
    assert size <= faiss_choices.sample_size(lists, 384, on_disk=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_is_an_error(small_disk: Path) -> None:
    retriever = made("IVF16,SQfp16")
    retriever.build(Keys(VECTORS))
    with pytest.raises(OSError, match="No space left"):
        retriever.save(small_disk)


def test_ten_times_the_vectors_cost_less_than_a_third_more_memory() -> None:
    if not STATUS.exists():
        pytest.skip("the peak of a process is read from /proc")

    def peak(count: int) -> int:
        run = subprocess.run(
            [sys.executable, "-c", PEAK, str(count)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
        )
        return int(run.stdout.split()[-1])

    small, large = peak(15_000), peak(150_000)
    print(f"peak {small / 1024:.0f} MB and {large / 1024:.0f} MB")
    assert large < 1.3 * small
