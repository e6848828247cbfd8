"""The index stage: saved, read back, and honest about a full disk."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from retroflow.components import RETRIEVERS, create
from retroflow.errors import RetrieverError
from retroflow.pipeline.index import INDEX_FOLDER, IndexStage
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.store.array_file import ArraySpec, ArrayWriter
from retroflow.store.artifact import artifact_folder, building, commit
from retroflow.store.hashing import with_digests
from retroflow.store.manifest import Manifest
from retroflow.store.pieces import Pieces


def embeddings_in(folder: Path, rows: int) -> Path:
    artifact = artifact_folder(folder, "embeddings", {})
    spec = ArraySpec("train/embeddings.npy", np.dtype(np.float16), (rows, 32))
    with building(artifact, print) as partial:
        assert partial is not None
        writer = ArrayWriter(partial, spec)
        writer.write(0, np.random.default_rng(0).normal(size=spec.shape))
        writer.close()
        info = {"dimension": 32, "splits": {"train": {"chunks": rows}}}
        entry = with_digests(writer.path, writer.entry(1 << 20, ()))
        manifest = Manifest("embeddings", {}, info=info, files={spec.name: entry})
        commit(partial, manifest, artifact)
    return artifact


def make_index(partial: Path, artifact: Path, name: str) -> Manifest:
    stage = IndexStage({}, {"embeddings": artifact}, {}, lambda: new(name), {"name": name})
    stage.begin(partial)
    return stage.join(partial, Pieces(partial), [])


def new(name: str) -> CheckedRetriever:
    return CheckedRetriever(create(RETRIEVERS, {"name": name}), owner=name)


@pytest.mark.parametrize("name", ["exact", "faiss", "hnsw", "scann"])
def test_an_index_on_a_full_disk_is_told_as_such(tmp_path: Path, name: str) -> None:
    pytest.importorskip({"exact": "torch", "hnsw": "hnswlib"}.get(name, name))
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    artifact = embeddings_in(tmp_path, 3000)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(OSError, match="No space left"):
            make_index(disk, artifact, name)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_half_an_index_is_thrown_away_and_a_whole_one_kept(tmp_path: Path) -> None:
    artifact = embeddings_in(tmp_path, 200)
    partial = tmp_path / "index.partial"
    (partial / INDEX_FOLDER / "backend").mkdir(parents=True)
    (partial / INDEX_FOLDER / "backend" / "index.faiss").write_bytes(b"half")
    first = make_index(partial, artifact, "faiss")
    written = {path: path.stat().st_mtime_ns for path in partial.rglob("*") if path.is_file()}
    assert make_index(partial, artifact, "faiss") == first
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert first.info == {"chunks": 200, "dimension": 32, "metric": "l2"}


def test_what_a_library_makes_of_a_full_disk_is_told_with_who_said_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = embeddings_in(tmp_path, 200)
    partial = tmp_path / "index.partial"
    partial.mkdir()

    def fail(self: CheckedRetriever, folder: Path) -> None:
        raise RetrieverError("annoy (retroflow-annoy 0.1): save() failed: Exception: Unable to write")

    monkeypatch.setattr(CheckedRetriever, "save", fail)
    with pytest.raises(RetrieverError, match="annoy"):
        make_index(partial, artifact, "exact")
    monkeypatch.setattr("retroflow.pipeline.index.NO_ROOM_BYTES", 1 << 62)
    with pytest.raises(OSError, match=r"No space left on device; annoy \(retroflow-annoy 0.1\)"):
        make_index(partial, artifact, "exact")
