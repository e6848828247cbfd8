"""What is particular to hnswlib: unreachable vertices, metadata it does not store, threads that change the graph."""

import json
from pathlib import Path

import numpy as np
import pytest

from retroflow.errors import DamagedDataError
from retroflow.testing.clustered import clustered_vectors

pytest.importorskip("hnswlib")
from retroflow.retrieval.hnsw import HnswBuild, HnswRetriever, HnswSearch
from retroflow.retrieval.keys import Keys


def test_vertices_that_cannot_be_reached_are_padding_and_no_exception() -> None:
    vectors = np.repeat(np.eye(8, dtype=np.float32), 60, axis=0)  # with 2 links, equal vectors link among themselves
    retriever = HnswRetriever(build=HnswBuild(links=2, ef_construction=5), search=HnswSearch(ef=5))
    retriever.build(Keys(vectors))
    ids, scores = retriever.search(Keys(vectors[::60]), 480)
    assert (ids[:, 0] >= 0).all()
    assert np.array_equal(ids == -1, scores == -np.inf)


def test_a_deterministic_build_is_equal_byte_by_byte(tmp_path: Path) -> None:
    contents = []
    for name in ("first", "second"):
        retriever = HnswRetriever()
        retriever.build(Keys(clustered_vectors(2_000, 16)))
        (tmp_path / name).mkdir()
        retriever.save(tmp_path / name)
        contents.append((tmp_path / name / "index.hnsw").read_bytes())
    assert contents[0] == contents[1]


def test_inner_products_are_returned_as_themselves() -> None:
    vectors = clustered_vectors(300, 16) * 3.0
    retriever = HnswRetriever(build=HnswBuild(metric="inner_product"))
    retriever.build(Keys(vectors))
    ids, scores = retriever.search(Keys(vectors[:10]), 3)
    assert np.allclose(scores, np.einsum("qd,qkd->qk", vectors[:10], vectors[ids]), atol=1e-4)


@pytest.mark.parametrize("change", [{"dimension": "wide"}, {"count": 3}, {"build": {"metric": "inner_product"}}])
def test_metadata_that_does_not_fit_is_damaged_data(tmp_path: Path, change: dict[str, object]) -> None:
    retriever = HnswRetriever()
    retriever.build(Keys(clustered_vectors(100, 16)))
    retriever.save(tmp_path)
    file = tmp_path / "hnsw.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DamagedDataError, match="hnsw: the index"):
        HnswRetriever().load(tmp_path)
