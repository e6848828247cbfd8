"""ExactRetriever against a float64 reference, and where its answer must not depend on its surroundings."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from retroflow.errors import UsageError
from retroflow.retrieval.keys import Keys
from retroflow.store import array_file
from retroflow.testing.clustered import clustered_vectors

torch = pytest.importorskip("torch")
exact = pytest.importorskip("retroflow.retrieval.exact")

VECTORS = clustered_vectors(500, 24)
QUERIES = clustered_vectors(520, 24)[500:]


def searched(vectors: object, k: int = 7, metric: str = "l2", **search: object) -> tuple[np.ndarray, np.ndarray]:
    retriever = exact.ExactRetriever(
        build=exact.ExactBuild(metric=metric), search=exact.ExactSearch(device="cpu", **search)
    )
    retriever.build(Keys(vectors))
    return retriever.search(Keys(QUERIES), k)


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
@pytest.mark.parametrize("block_rows", [1, 33, 499, 500, 10_000])
def test_equals_a_float64_reference_whatever_the_block(metric: str, block_rows: int) -> None:
    wide, queries = VECTORS.astype(np.float64), QUERIES.astype(np.float64)
    if metric == "l2":
        scores = -np.square(queries[:, None] - wide).sum(axis=2)
    else:
        scores = queries @ wide.T
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :7]
    ids, found = searched(VECTORS, metric=metric, block_rows=block_rows, query_rows=6)
    assert np.array_equal(ids, expected)
    assert np.allclose(found, np.take_along_axis(scores, expected, axis=1), atol=1e-6)


@pytest.mark.parametrize("block_rows", [7, 64, 1_000])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_equal_scores_are_ordered_by_ascending_id(block_rows: int, k: int) -> None:
    vectors = np.repeat(np.eye(24, dtype=np.float32)[:3], 40, axis=0)
    retriever = exact.ExactRetriever(search=exact.ExactSearch(block_rows=block_rows))
    retriever.build(Keys(vectors))
    ids, _ = retriever.search(Keys(vectors[[0, 40, 80]]), k)
    assert np.array_equal(ids, np.array([[0], [40], [80]]) + np.arange(k))


def test_half_precision_matmul_and_autocast_of_the_caller_do_not_reach_it() -> None:
    expected = searched(VECTORS)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            given = searched(VECTORS)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert np.array_equal(given[0], expected[0]) and np.array_equal(given[1], expected[1])


def test_keeps_the_dtype_of_the_source_and_maps_it_from_disk(tmp_path: Path) -> None:
    half = VECTORS.astype(np.float16)
    retriever = exact.ExactRetriever()
    retriever.build(Keys(half))
    retriever.save(tmp_path)
    opened = exact.ExactRetriever()
    opened.load(tmp_path)
    assert (tmp_path / "vectors.npy").stat().st_size == 128 + half.nbytes
    assert isinstance(opened._sources[0], np.memmap)
    assert np.array_equal(opened.search(Keys(QUERIES), 3).ids, retriever.search(Keys(QUERIES), 3).ids)


def test_a_file_that_has_no_room_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write through a map would end the process (SIGBUS); tests/pipeline/test_index.py does it on a real disk."""

    def no_room(descriptor: int, num_bytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(array_file, "allocate", no_room)
    retriever = exact.ExactRetriever()
    retriever.build(Keys(VECTORS))
    with pytest.raises(OSError, match="No space left"):
        retriever.save(tmp_path)
    assert (tmp_path / "vectors.npy").stat().st_size == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_cuda_without_a_gpu_is_an_error_of_the_recipe() -> None:
    with pytest.raises(UsageError, match='device is "cuda", but torch finds no CUDA'):
        exact.ExactRetriever(search=exact.ExactSearch(device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_answers_as_the_cpu_does() -> None:
    on_gpu = exact.ExactRetriever(search=exact.ExactSearch(device="cuda", block_rows=100))
    on_gpu.build(Keys(VECTORS))
    ids, scores = on_gpu.search(Keys(QUERIES), 7)
    expected_ids, expected_scores = searched(VECTORS)
    assert np.array_equal(ids, expected_ids) and np.allclose(scores, expected_scores, atol=1e-5)
