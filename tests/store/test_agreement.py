"""Arrays that do not fit together are found at opening, or when they are made, under checksums that are all correct."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retroflow.errors import DamagedDataError
from retroflow.pipeline.prepare import Prepared, prepare
from retroflow.store import agreement, chunk_store
from retroflow.store.agreement import check_same_rows, num_rows
from retroflow.store.array_file import Array, ArraySpec, ArrayWriter
from retroflow.store.chunk_store import ChunkStore
from retroflow.store.embedding_store import EmbeddingStore
from retroflow.store.hashing import with_digests
from retroflow.store.manifest import Manifest, read_manifest
from retroflow.store.neighbour_table import NeighbourTable
from tests.pipeline.recipes import small_recipe


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(small_recipe(tmp_path_factory.mktemp("agreement")), report=lambda stage: None)


@pytest.fixture(params=[agreement.ROWS_AT_A_TIME, 3], ids=["one_block", "many_blocks"])
def artifacts(
    prepared: Prepared, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Gives the copy of a kind's artifact, read in blocks of so many rows."""
    for module in (agreement, chunk_store):
        monkeypatch.setattr(module, "ROWS_AT_A_TIME", request.param)
    folders = {}
    for stage in prepared.stages:
        folders[stage.kind] = tmp_path / stage.folder.name
        shutil.copytree(stage.folder, folders[stage.kind])
    return folders.__getitem__


def rewrite(artifact: Path, name: str, change: Callable[[Array], Array]) -> Manifest:
    """Change an array of an artifact as a wrong program would have written it: with its checksums."""
    array = change(np.load(artifact / name))
    (artifact / name).unlink()
    writer = ArrayWriter(artifact, ArraySpec(name, array.dtype, array.shape))
    writer.write(0, array)
    writer.close()
    manifest = read_manifest(artifact)
    entry = with_digests(artifact / name, writer.entry(4 << 20, ()))
    changed = replace(manifest, files=dict(manifest.files) | {name: entry})
    changed.write(artifact)
    return changed


def at(row: int, value: int) -> Callable[[Array], Array]:
    """Add to one row."""

    def change(array: Array) -> Array:
        array = array.copy()
        array[row] = int(array[row]) + value
        return array

    return change


def one_row_too_early(offsets: Array) -> Array:
    """What was written before 2026-11-26 of every piece but the first."""
    half = len(offsets) // 2
    return np.concatenate([offsets[:half], offsets[half + 1 :], [0]])


OPENED = [
    ("document_offsets", one_row_too_early, r"its offsets go from 0 to 0, and the records from 0 to"),
    ("document_offsets", at(0, 1), r"its offsets go from 1 to"),
    ("document_offsets", at(-1, -1), r"its offsets go from 0 to"),
    ("document_offsets", at(7, 10_000), r"record 7 ends before it begins"),
    ("document_offsets", at(6, -10_000), r"record 5 ends before it begins"),
    ("document_offsets", lambda array: array[:-1], r"its shape is \[\d+\], and must be"),
    ("documents", lambda array: array[:-1], r"document_offsets.*its offsets go from 0 to"),
    ("lengths", lambda array: array[:-1], r"its shape is \[\d+\], and must be"),
    ("num_bytes", lambda array: array[1:], r"its shape is \[\d+\], and must be"),
    ("document_ids", lambda array: array[:-3], r"its shape is \[\d+\], and must be"),
    ("document_ids", at(-1, 1), r"it goes from document 0 to"),
    ("document_ids", at(0, 1), r"it goes from document 1 to"),
    ("tokens", lambda array: array[:, :-1], r"its shape is \[\d+, 15\], and must be \[\d+, 16\]"),
]


@pytest.mark.parametrize(("name", "change", "says"), OPENED)
def test_chunks_that_do_not_fit_are_refused_at_opening(
    artifacts: Callable[[str], Path], name: str, change: Callable[[Array], Array], says: str
) -> None:
    chunks = artifacts("chunks")
    ChunkStore.open(chunks / "train").check_rows()
    rewrite(chunks, f"train/{name}.npy", change)
    with pytest.raises(DamagedDataError, match=rf"train/\w+\.npy\" is damaged: .*{says}|{says}.*Delete the") as caught:
        ChunkStore.open(chunks / "train")
    assert str(chunks / "train") in str(caught.value) and f'Delete the folder "{chunks}"' in str(caught.value)
    ChunkStore.open(chunks / "valid").check_rows()


MADE = [
    ("document_offsets", at(9, 1), r"documents\.npy.*record 8 is not where its offset says"),
    ("document_ids", lambda array: np.where(array == 5, 6, array), r"document_ids\.npy.*do not follow one another"),
    (
        "document_ids",
        lambda array: np.where(array == 5, 4, array),
        r"do not follow one another|before its document does",
    ),
    ("lengths", at(0, -1), r"lengths\.npy.*a chunk ends before its document does"),
    ("lengths", lambda array: np.where(array == 16, array, array - 1), r"lengths\.npy.*(a chunk ends|its chunks have)"),
    ("num_bytes", at(3, 1), r"lengths\.npy.*its chunks have"),
]


@pytest.mark.parametrize(("name", "change", "says"), MADE)
def test_chunks_that_do_not_fit_are_refused_when_they_are_made(
    artifacts: Callable[[str], Path], name: str, change: Callable[[Array], Array], says: str
) -> None:
    chunks = artifacts("chunks")
    manifest = rewrite(chunks, f"train/{name}.npy", change)
    with pytest.raises(DamagedDataError, match=says):
        ChunkStore.in_progress(chunks / "train", manifest).check_rows()


@pytest.mark.parametrize("change", [lambda array: array[:-1], lambda array: array[:, :-1]])
@pytest.mark.parametrize(
    ("kind", "name", "store"),
    [
        ("embeddings", "valid/embeddings.npy", EmbeddingStore),
        ("neighbours", "valid/ids.npy", NeighbourTable),
        ("neighbours", "valid/scores.npy", NeighbourTable),
    ],
)
def test_embeddings_and_neighbours_of_another_shape_are_refused_at_opening(
    artifacts: Callable[[str], Path],
    kind: str,
    name: str,
    store: type[EmbeddingStore] | type[NeighbourTable],
    change: Callable[[Array], Array],
) -> None:
    store.open(artifacts(kind) / "valid")
    rewrite(artifacts(kind), name, change)
    with pytest.raises(DamagedDataError, match=rf"{name}\" is damaged: its shape is"):
        store.open(artifacts(kind) / "valid")
    store.open(artifacts(kind) / "train")


def test_every_artifact_has_a_row_for_every_chunk(prepared: Prepared) -> None:
    chunks, *others = (stage.manifest for stage in prepared.stages)
    assert num_rows(others[1]) == {"train": num_rows(chunks)["train"]}
    fewer = {"splits": {split: dict(counts) for split, counts in chunks.info["splits"].items()}}
    fewer["splits"]["train"]["chunks"] -= 1
    for stage in prepared.stages[1:]:
        check_same_rows(stage.folder, stage.manifest, chunks)
        with pytest.raises(DamagedDataError, match=rf"{stage.folder.name}\" is damaged: \d+ rows for \d+ train chunks"):
            check_same_rows(stage.folder, stage.manifest, replace(chunks, info=fewer))
