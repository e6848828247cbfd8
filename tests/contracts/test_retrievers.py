"""Every built-in retriever keeps the contract that plugins are held to."""

from pathlib import Path

import pytest

from retroflow.protocols import Retriever
from retroflow.testing import RetrieverContract
from retroflow.testing.retriever_rules.case import RetrieverCase
from retroflow.testing.retriever_rules.storage import shards_make_the_index_of_one_build
from retroflow.testing.rule_process import RuleProcess


class TestExactRetriever(RetrieverContract):
    score_tolerance = 1e-5

    def make_retriever(self) -> Retriever:
        from retroflow.retrieval.exact import ExactRetriever

        return ExactRetriever()

    def make_retriever_searching_differently(self) -> Retriever:
        from retroflow.retrieval.exact import ExactRetriever, ExactSearch

        return ExactRetriever(search=ExactSearch(block_rows=100, query_rows=7))


class TestFaissRetriever(RetrieverContract):
    def make_retriever(self) -> Retriever:
        pytest.importorskip("faiss")
        from retroflow.retrieval.faiss import FaissRetriever

        return FaissRetriever()

    def make_retriever_searching_differently(self) -> Retriever:
        from retroflow.retrieval.faiss import FaissRetriever, FaissSearch

        return FaissRetriever(search=FaissSearch(nprobe=3, num_threads=1))


def test_plain_lists_of_faiss_are_built_in_shards(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    from retroflow.retrieval.faiss import FaissBuild, FaissRetriever

    class Suite(RetrieverContract):
        def make_retriever(self) -> Retriever:
            return FaissRetriever(build=FaissBuild(factory="IVF32,SQfp16"))

    shards_make_the_index_of_one_build(RetrieverCase(Suite(), tmp_path, RuleProcess()))


class TestScannRetriever(RetrieverContract):
    def make_retriever(self) -> Retriever:
        pytest.importorskip("scann")
        from retroflow.retrieval.scann import ScannBuild, ScannRetriever

        return ScannRetriever(build=ScannBuild(brute_force_below=1_000))

    def make_retriever_searching_differently(self) -> Retriever:
        from retroflow.retrieval.scann import ScannBuild, ScannRetriever, ScannSearch

        return ScannRetriever(build=ScannBuild(brute_force_below=1_000), search=ScannSearch(leaves_to_search=5))


class TestScannRetrieverByBruteForce(RetrieverContract):
    def make_retriever(self) -> Retriever:
        pytest.importorskip("scann")
        from retroflow.retrieval.scann import ScannBuild, ScannRetriever

        return ScannRetriever(build=ScannBuild(metric="inner_product"))


class TestHnswRetriever(RetrieverContract):
    def make_retriever(self) -> Retriever:
        pytest.importorskip("hnswlib")
        from retroflow.retrieval.hnsw import HnswRetriever

        return HnswRetriever()

    def make_retriever_searching_differently(self) -> Retriever:
        from retroflow.retrieval.hnsw import HnswRetriever, HnswSearch

        return HnswRetriever(search=HnswSearch(ef=20, num_threads=1))


class TestBm25Retriever(RetrieverContract):
    def make_retriever(self) -> Retriever:
        pytest.importorskip("bm25s")
        from retroflow.retrieval.bm25 import Bm25Retriever

        return Bm25Retriever()


class TestHybridRetriever(RetrieverContract):
    def make_retriever(self, candidates: int = 64) -> Retriever:
        pytest.importorskip("bm25s")
        from retroflow.retrieval.bm25 import Bm25Retriever
        from retroflow.retrieval.checked import CheckedRetriever
        from retroflow.retrieval.exact import ExactRetriever
        from retroflow.retrieval.hybrid import HybridRetriever, HybridSearch

        dense, words = (CheckedRetriever(each(), owner=each.__name__) for each in (ExactRetriever, Bm25Retriever))
        return HybridRetriever(dense=dense, words=words, search=HybridSearch(candidates=candidates))

    def make_retriever_searching_differently(self) -> Retriever:
        return self.make_retriever(candidates=8)
