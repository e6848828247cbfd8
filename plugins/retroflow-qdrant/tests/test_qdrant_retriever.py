"""The whole contract in the library's embedded mode, and what is particular to Qdrant."""

import numpy as np
import pytest
from retroflow_qdrant import retriever as module
from retroflow_qdrant.connection import Connection
from retroflow_qdrant.retriever import QdrantRetriever, QdrantSearch

from retroflow.errors import UsageError
from retroflow.protocols import Retriever
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.testing import RetrieverContract


class TestQdrantRetriever(RetrieverContract):
    seconds = 600.0  # the embedded mode is Python

    def make_retriever(self) -> Retriever:
        return QdrantRetriever(url=":memory:")

    def make_retriever_searching_differently(self) -> Retriever:
        return QdrantRetriever(url=":memory:", search=QdrantSearch(ef=8, timeout=1, retries=0))


@pytest.mark.parametrize("url", ["localhost:6333", "ftp://host", "http://", "http://host:99999", "http://host?a=b"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=f'retriever.url is "{url[:4]}.*allowed: "http://HOST:PORT"'):
        QdrantRetriever(url=url)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://host", "http://host:6333"),
        ("https://host/prefix", "https://host:443/prefix"),
        ("http://[::1]:7000", "http://[::1]:7000"),
    ],
)
def test_the_port_of_an_address(given: str, used: str) -> None:
    server = Connection(given, timeout=1, retries=0)
    assert server.url == used
    assert server._client()._client.rest_uri == used  # type: ignore[attr-defined]


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(UsageError, match="Leave them out, and give the API key in .*QDRANT_API_KEY") as raised:
        QdrantRetriever(url="http://me:hunter2@host:6333")
    assert "hunter2" not in str(raised.value)


def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", "hunter2\nx")
    with pytest.raises(UsageError, match="QDRANT_API_KEY has characters") as raised:
        QdrantRetriever()
    assert "hunter2" not in str(raised.value)


def test_a_name_that_no_collection_can_have_is_refused() -> None:
    with pytest.raises(UsageError, match='retriever.collection is "a/b"; allowed: ASCII letters'):
        QdrantRetriever(collection="a/b")


def test_vectors_that_are_too_wide_are_refused() -> None:
    with pytest.raises(UsageError, match="65,537 columns, and Qdrant holds at most 65,536"):
        QdrantRetriever(url=":memory:").check_vectors(None, 65_537)


def test_equal_scores_are_ordered_by_id_whatever_is_asked_for() -> None:
    vectors = np.repeat(np.eye(4, dtype=np.float32), 50, axis=0)[np.random.default_rng(0).permutation(200)]
    retriever = CheckedRetriever(QdrantRetriever(url=":memory:"), owner="qdrant")
    retriever.build(vectors)
    retriever.remove(np.arange(0, 200, 3))
    live = np.setdiff1d(np.arange(200), np.arange(0, 200, 3))
    twins = [live[(vectors[live] == axis).all(axis=1)] for axis in np.eye(4)]
    for k in (1, 7, 30):
        assert retriever.search(np.eye(4, dtype=np.float32), k).ids.tolist() == [ids[:k].tolist() for ids in twins]


def test_the_index_of_a_server_is_not_opened_by_the_embedded_mode(tmp_path: module.Path) -> None:
    retriever = CheckedRetriever(QdrantRetriever(url=":memory:"), owner="qdrant")
    retriever.build(np.eye(3, dtype=np.float32))
    retriever.save(tmp_path)
    with pytest.raises(UsageError, match="was built with the embedded mode, and retriever.url names a server"):
        CheckedRetriever(QdrantRetriever(), owner="qdrant").load(tmp_path)
