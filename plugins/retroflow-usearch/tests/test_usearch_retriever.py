"""The whole contract, as retroflow ships it, and what is particular to usearch."""

import numpy as np
import pytest
from retroflow_usearch import UsearchBuild, UsearchRetriever, UsearchSearch

from retroflow.protocols import Retriever
from retroflow.retrieval.keys import Keys
from retroflow.testing import RetrieverContract


class TestUsearchRetriever(RetrieverContract):
    def make_retriever(self) -> Retriever:
        return UsearchRetriever()

    def make_retriever_searching_differently(self) -> Retriever:
        return UsearchRetriever(search=UsearchSearch(expansion_search=10, num_threads=1))


class TestUsearchRetrieverByInnerProduct(RetrieverContract):
    def make_retriever(self) -> Retriever:
        return UsearchRetriever(build=UsearchBuild(metric="inner_product", dtype="f32"))


@pytest.mark.parametrize("rows", [1, 2])
def test_one_query_and_two_have_the_same_shape_of_answer(rows: int) -> None:
    vectors = np.eye(3, dtype=np.float32)
    retriever = UsearchRetriever()
    retriever.build(Keys(vectors))
    ids, scores = retriever.search(Keys(vectors[:rows]), 5)
    assert ids.shape == scores.shape == (rows, 5)
    assert (ids[:, 3:] == -1).all() and (scores[:, 3:] == -np.inf).all()
