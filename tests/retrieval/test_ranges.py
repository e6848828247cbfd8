"""Options of exact and faiss that no search can work with are refused by their recipe key."""

import pytest

from retroflow.errors import RecipeError
from retroflow.retrieval.exact import ExactRetriever, ExactSearch
from retroflow.retrieval.faiss import FaissBuild, FaissRetriever, FaissSearch


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FaissRetriever(search=FaissSearch(nprobe=0)), "retriever.search.nprobe is 0; it must be 1 or more"),
        (lambda: FaissRetriever(search=FaissSearch(ef_search=-1)), "retriever.search.ef_search is -1"),
        (lambda: FaissRetriever(build=FaissBuild(train_sample=-5)), "retriever.build.train_sample is -5"),
        (lambda: ExactRetriever(search=ExactSearch(block_rows=0)), "retriever.search.block_rows is 0"),
        (lambda: ExactRetriever(search=ExactSearch(query_rows=0)), "retriever.search.query_rows is 0"),
    ],
)
def test_options_that_are_too_small_are_errors_of_the_recipe(make, message):
    with pytest.raises(RecipeError, match=message):
        make()
