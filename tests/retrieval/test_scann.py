"""What is particular to ScaNN: id 0 with NaN, its pickle, brute force and inner products."""

from pathlib import Path

import numpy as np
import pytest

from retroflow.errors import DamagedDataError, UsageError
from retroflow.retrieval.keys import Keys
from retroflow.testing.clustered import clustered_vectors

pytest.importorskip("scann")
from retroflow.retrieval.scann import ScannBuild, ScannRetriever, ScannSearch

VECTORS = clustered_vectors(1_500, 16)


@pytest.mark.parametrize("brute_force_below", [1_000, 5_000])
@pytest.mark.parametrize("metric", ["l2", "inner_product"])
def test_padding_is_never_id_0(brute_force_below: int, metric: str) -> None:
    build = ScannBuild(metric=metric, brute_force_below=brute_force_below)  # type: ignore[arg-type]
    retriever = ScannRetriever(build=build, search=ScannSearch(leaves_to_search=1))
    retriever.build(Keys(VECTORS))
    ids, scores = retriever.search(Keys(VECTORS[:20]), 1_600)
    assert np.array_equal(ids == -1, scores == -np.inf) and (ids[:, 1_500:] == -1).all()
    assert ((ids == 0).sum(axis=1) <= 1).all()
    assert (np.sort(ids)[:, 1:] != np.sort(ids)[:, :-1])[np.sort(ids)[:, 1:] >= 0].all()


def test_more_leaves_than_there_are_can_be_asked_for() -> None:
    retriever = ScannRetriever(build=ScannBuild(brute_force_below=1_000), search=ScannSearch(leaves_to_search=10_000))
    retriever.build(Keys(VECTORS))
    assert np.mean(retriever.search(Keys(VECTORS), 1).ids[:, 0] == np.arange(1_500)) >= 0.99


def test_a_sample_smaller_than_the_tree_is_refused_before_there_are_vectors() -> None:
    retriever = ScannRetriever(build=ScannBuild(brute_force_below=1_000, train_sample=20))
    retriever.check_vectors(None, 16)
    retriever.check_vectors(999, 16)  # no tree
    with pytest.raises(UsageError, match=r"^retriever.build.train_sample is 20, fewer than the 155 leaves"):
        retriever.check_vectors(1_500, 16)
    ScannRetriever().check_vectors(10_000_000, 16)


def test_a_planted_pickle_is_never_opened(tmp_path: Path) -> None:
    retriever = ScannRetriever()
    retriever.build(Keys(VECTORS))
    retriever.save(tmp_path)
    (tmp_path / "searcher" / "scann_docids.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(DamagedDataError, match="pickle"):
        ScannRetriever().load(tmp_path)
