"""The whole contract, and what is particular to LanceDB."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from retroflow_lancedb import LanceBuild, LanceRetriever, LanceSearch

from retroflow.errors import DamagedDataError
from retroflow.protocols import Retriever
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.testing import RetrieverContract
from retroflow.testing.clustered import clustered_vectors
from retroflow.testing.retriever_rules import answers, changes

VECTORS = clustered_vectors(4_000, 32)


class TestLanceRetriever(RetrieverContract):
    def make_retriever(self) -> Retriever:
        return LanceRetriever(build=LanceBuild(index="none"))

    def make_retriever_searching_differently(self) -> Retriever:
        return LanceRetriever(build=LanceBuild(index="none"), search=LanceSearch(nprobes=4))


class TestLanceRetrieverByInnerProduct(RetrieverContract):
    rule_modules = (answers, changes)

    def make_retriever(self) -> Retriever:
        return LanceRetriever(build=LanceBuild(metric="inner_product", dtype="float16"))


def new(**options: Any) -> CheckedRetriever:
    return CheckedRetriever(LanceRetriever(**options), owner="lancedb")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("index", ["ivf_flat", "ivf_pq", "ivf_hnsw_sq"])
def test_an_index_finds_most_and_is_kept(index: Any, tmp_path: Path) -> None:
    """Also keys that are added to it, and not those that are removed."""
    built, truth = new(build=LanceBuild(index=index, partitions=16)), new(build=LanceBuild(index="none"))
    built.build(VECTORS[:3_800])
    built.add(VECTORS[3_800:])
    built.remove(np.arange(0, 4_000, 5))
    built.save(tmp_path / "index")
    opened = new(build=LanceBuild(index=index, partitions=16))
    opened.load(tmp_path / "index")
    assert opened._retriever._table.list_indices()  # type: ignore[attr-defined]
    truth.build(VECTORS)
    truth.remove(np.arange(0, 4_000, 5))
    found, true = opened.search(VECTORS[::20], 10), truth.search(VECTORS[::20], 10)
    shares = [np.isin(row, of).mean() for row, of in zip(found.ids, true.ids, strict=True)]
    assert np.mean(shares) > 0.95
    assert np.isclose(found.scores[:, 0], true.scores[:, 0], atol=1e-5).mean() > 0.95
    exactly = new(build=LanceBuild(index=index, partitions=16), search=LanceSearch(exact=True))
    exactly.load(tmp_path / "index")
    assert np.array_equal(exactly.search(VECTORS[::20], 10).ids, true.ids)


def test_equal_scores_are_ordered_by_id_whatever_is_asked_for() -> None:
    vectors = np.repeat(np.eye(4, dtype=np.float32), 50, axis=0)[np.random.default_rng(0).permutation(200)]
    retriever = new()
    retriever.build(vectors)
    retriever.remove(np.arange(0, 200, 3))
    live = np.setdiff1d(np.arange(200), np.arange(0, 200, 3))
    twins = [live[(vectors[live] == axis).all(axis=1)] for axis in np.eye(4)]
    for k in (1, 7, 30):
        assert retriever.search(np.eye(4, dtype=np.float32), k).ids.tolist() == [ids[:k].tolist() for ids in twins]


def test_a_saved_index_is_not_changed_by_what_follows(tmp_path: Path) -> None:
    """Files are linked, so this would be seen in the first folder."""
    retriever = new()
    retriever.build(VECTORS[:500])
    retriever.save(tmp_path / "first")
    before = bytes_of(tmp_path / "first")
    retriever.remove(np.arange(100))
    retriever.add(VECTORS[500:600])
    retriever.save(tmp_path / "second")
    opened = new()
    opened.load(tmp_path / "first")
    opened.add(VECTORS[600:700])
    opened.remove([3])
    opened.save(tmp_path / "third")
    assert bytes_of(tmp_path / "first") == before
    for name, count in (("first", 500), ("second", 500), ("third", 599)):
        opened.load(tmp_path / name)
        assert len(opened) == count and (opened.search(VECTORS[:1], 1000).ids >= 0).sum() == count


def test_a_process_that_is_killed_while_it_adds_leaves_the_saved_index(tmp_path: Path) -> None:
    retriever = new()
    retriever.build(VECTORS[:500])
    retriever.save(tmp_path / "index")
    before = bytes_of(tmp_path / "index")
    program = (
        "import os, sys, numpy, retroflow_lancedb as lance\n"
        "from retroflow.retrieval.keys import Keys\n"
        "class Dying(numpy.ndarray):\n"
        "    def __getitem__(self, rows):\n"
        "        os._exit(9) if rows.start else None\n"
        "        return numpy.asarray(self)[rows]\n"
        "lance.READ_ROWS = 100\n"
        "retriever = lance.LanceRetriever()\n"
        "retriever.load(lance.Path(sys.argv[1]))\n"
        "retriever.remove(numpy.arange(50))\n"
        "retriever.add(Keys(numpy.ones((300, 32), numpy.float32).view(Dying)))\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    folder = tmp_path / "index" / "backend"
    assert subprocess.run([sys.executable, "-c", program, str(folder)], env=environment).returncode == 9
    assert bytes_of(tmp_path / "index") == before
    retriever.load(tmp_path / "index")
    assert (retriever.search(VECTORS[:500], 1).ids[:, 0] == np.arange(500)).all()


@pytest.mark.parametrize("name", ["per%20cent and space", "ha#sh", "que?ry", "index\u00e9"])
def test_folders_of_any_name(tmp_path: Path, name: str) -> None:
    retriever = new()
    retriever.build(VECTORS[:20])
    retriever.save(tmp_path / name)
    retriever.load(tmp_path / name)
    assert (retriever.search(VECTORS[:20], 1).ids[:, 0] == np.arange(20)).all()


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "next_id.txt").write_text("7")
    with pytest.raises(DamagedDataError, match="holds no readable table"):
        LanceRetriever().load(tmp_path)


def test_temporary_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    retriever = new()
    retriever.build(VECTORS[:20])
    retriever.build(VECTORS[:30])
    assert len(list(tmp_path.iterdir())) == 1
    del retriever
    assert not list(tmp_path.iterdir())
