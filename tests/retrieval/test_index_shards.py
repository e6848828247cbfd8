"""An index that is trained once, filled in shards and merged: the files of the index that one process builds."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retroflow.components import create_retriever
from retroflow.errors import RetrieverError
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.retrieval.index_shards import IndexShards
from retroflow.store.hashing import describe_tree

VECTORS = np.random.default_rng(0).standard_normal((9_000, 16)).astype(np.float16)
SHARD = 4_096


def retriever(factory: str, metric: str = "l2") -> CheckedRetriever:
    return create_retriever({"name": "faiss", "build": {"factory": factory, "metric": metric}, "search": {}})


def shards_of(made: CheckedRetriever) -> IndexShards:
    shards = made.in_shards(*VECTORS.shape)
    assert shards is not None
    return shards


def filled(new: Callable[[], CheckedRetriever], trained: Path) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Every shard filled by a retriever of its own, the last first, as processes would."""
    trained.mkdir()
    shards_of(new()).train(VECTORS, trained)
    made = []
    for start in reversed(range(0, len(VECTORS), SHARD)):
        shards = shards_of(new())
        shards.open_trained(trained)
        made.append(shards.fill(VECTORS[start : start + SHARD]))
    return made[::-1]


@pytest.mark.parametrize(
    ("factory", "metric"),
    [("IVF32,SQfp16", "l2"), ("IVF32,Flat", "inner_product"), ("IVF16,PQ4x4", "l2"), ("IVF32_HNSW8,SQ8", "l2")],
)
def test_shards_merge_to_the_bytes_of_one_build(tmp_path: Path, factory: str, metric: str) -> None:
    pytest.importorskip("faiss")

    def new() -> CheckedRetriever:
        return retriever(factory, metric)

    alone = new()
    alone.build(VECTORS)
    alone.save(tmp_path / "alone")
    parts, passes = filled(new, tmp_path / "trained"), []

    def read() -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        passes.append(len(parts))
        return iter(parts)

    merged = new()
    shards = shards_of(merged)
    shards.open_trained(tmp_path / "trained")
    merged.merge(shards, read, *VECTORS.shape)
    merged.save(tmp_path / "merged")
    assert describe_tree(tmp_path / "merged", "") == describe_tree(tmp_path / "alone", "")
    assert len(passes) <= 2  # each reads all shards from the disk
    with pytest.raises(RetrieverError, match=r"after merge\(\) come save\(\) and load\(\), before search"):
        merged.search(VECTORS[:1], 1)
    merged.load(tmp_path / "merged")
    alone.load(tmp_path / "alone")
    queries = VECTORS[:50].astype(np.float32)
    assert np.array_equal(merged.search(queries, 3).ids, alone.search(queries, 3).ids)


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF16,PQ8x4fs,Refine(SQfp16)", "OPQ8,IVF16,PQ8", "auto"])
def test_other_kinds_are_built_by_one_process(factory: str) -> None:
    pytest.importorskip("faiss")
    assert retriever(factory).in_shards(*VECTORS.shape) is None


@pytest.mark.parametrize("name", ["exact", "hnsw", "scann"])
def test_other_retrievers_are_built_by_one_process(name: str) -> None:
    pytest.importorskip({"exact": "torch", "hnsw": "hnswlib"}.get(name, name))
    assert create_retriever({"name": name, "build": {}, "search": {}}).in_shards(*VECTORS.shape) is None
