"""What the plugin sends to a server, and what it does when the server refuses, stalls or dies.

The server is fake_qdrant.py, unless QDRANT_TEST_URL names a real one for the contract.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from retroflow_qdrant import indexing
from retroflow_qdrant import retriever as module
from retroflow_qdrant.retriever import QdrantBuild, QdrantRetriever, QdrantSearch

from retroflow.errors import DamagedDataError, RetrieverError, RetroflowError, UsageError
from retroflow.protocols import Retriever
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.testing import RetrieverContract
from retroflow.testing.retriever_rules import changes, instances, storage

VECTORS = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
QUICK = QdrantSearch(timeout=30, retries=1)


def start(port: int = 0, log: Path | None = None, **environment: str) -> tuple["subprocess.Popen[str]", str]:
    """Start a server; return its process and address."""
    command = [sys.executable, str(Path(__file__).with_name("fake_qdrant.py")), str(port), *([str(log)] * bool(log))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    assert process.stdout is not None
    return process, f"http://127.0.0.1:{process.stdout.readline().strip()}"


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()


class TestQdrantServer(RetrieverContract):
    """Storage, instances and changes over HTTP; with a real server, all rules."""

    rule_modules = RetrieverContract.rule_modules if "QDRANT_TEST_URL" in os.environ else (storage, instances, changes)
    num_vectors = 500
    seconds = 600.0  # the stand-in is Python, too

    @classmethod
    def setup_class(cls) -> None:
        cls.server = None
        if "QDRANT_TEST_URL" not in os.environ:
            cls.server, os.environ["FAKE_QDRANT_URL"] = start()

    @classmethod
    def teardown_class(cls) -> None:
        super().teardown_class()
        if cls.server is not None:
            end(cls.server)
            del os.environ["FAKE_QDRANT_URL"]

    def make_retriever(self) -> Retriever:
        url = os.environ.get("QDRANT_TEST_URL") or os.environ["FAKE_QDRANT_URL"]
        return QdrantRetriever(url=url, search=QdrantSearch(exact=True))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    process, address = start()
    yield address
    end(process)


def new(url: str, **options: Any) -> CheckedRetriever:
    return CheckedRetriever(QdrantRetriever(url=url, **{"search": QUICK, **options}), owner="qdrant")


@pytest.fixture
def saved(url: str, tmp_path: Path) -> Path:
    """The folder of an index over VECTORS."""
    retriever = new(url)
    retriever.build(VECTORS)
    retriever.save(tmp_path / "index")
    return tmp_path / "index"


def collection_of(folder: Path) -> str:
    (part,) = json.loads((folder / "backend" / "qdrant.json").read_text())["parts"]
    return str(part["collection"])


def refusing(client: QdrantClient, name: str) -> None:
    client.delete_collection(name)


def making_others(client: QdrantClient, name: str, size: int = 5, distance: Any = models.Distance.EUCLID) -> None:
    client.delete_collection(name)
    client.create_collection(name, vectors_config=models.VectorParams(size=size, distance=distance))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (refusing, 'needs the collection "retroflow-.* is not at http://127.* run `retroflow prepare` again'),
        (making_others, "has vectors with 5 columns, compared by Euclid; those of the index have 8 columns"),
        (lambda client, name: making_others(client, name, 8, models.Distance.DOT), "by Dot; .* by Euclid"),
        (lambda client, name: making_others(client, name, 8), "holds 0 of the 300 vectors of the index"),
    ],
)
def test_a_collection_that_is_not_what_was_saved(url: str, saved: Path, spoil: Callable[..., None], words: str) -> None:
    spoil(QdrantClient(url=url, check_compatibility=False), collection_of(saved))
    with pytest.raises(DamagedDataError, match=words):
        new(url).load(saved)


def test_a_collection_that_is_deleted_while_it_is_open(url: str, saved: Path) -> None:
    retriever = new(url)
    retriever.load(saved)
    QdrantClient(url=url, check_compatibility=False).delete_collection(collection_of(saved))
    with pytest.raises(DamagedDataError, match="index needs the collection"):
        retriever.search(VECTORS[:2], 3)


def test_no_server_is_an_error_of_one_sentence() -> None:
    with pytest.raises(RetrieverError, match=r"at http://127.0.0.1:1 failed: no server .*2 tries"):
        new("http://127.0.0.1:1").build(VECTORS)


def test_a_missing_server_is_said_before_anything_is_embedded(capsys: pytest.CaptureFixture[str]) -> None:
    new("http://127.0.0.1:1").check_vectors(None, 8)
    assert "no server answers at http://127.0.0.1:1; it is needed to build and to search" in capsys.readouterr().err


def test_another_address_in_the_environment(url: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index is opened where its server is now."""
    monkeypatch.setenv("RETROFLOW_QDRANT_URL", url)
    retriever = new("http://127.0.0.1:1")
    retriever.load(saved)
    assert (retriever.search(VECTORS, 1).ids[:, 0] == np.arange(300)).all()


def test_a_busy_server_is_tried_again() -> None:
    process, url = start(FAKE_BUSY="2")
    with pytest.raises(RetrieverError, match="HTTP status 503: starting .*1 try"):
        new(url, search=QdrantSearch(retries=0)).build(VECTORS)
    new(url, search=QdrantSearch(retries=3)).build(VECTORS)
    end(process)


def test_a_server_that_refuses_for_a_while_is_tried_again_when_it_says() -> None:
    process, url = start(FAKE_BUSY="1", FAKE_STATUS="429")
    new(url, search=QdrantSearch(retries=1)).build(VECTORS)
    end(process)


@pytest.mark.parametrize("progress", [7, 0])
def test_indexing_is_waited_for_as_long_as_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], progress: int
) -> None:
    for name, value in (("POLL_SECONDS", 0.02), ("SAY_SECONDS", 0.0), ("STALLED", 0.01)):
        monkeypatch.setattr(indexing, name, value)
    process, url = start(FAKE_INDEXES="30" if progress else "100000", FAKE_PROGRESS=str(progress))
    retriever = new(url)
    if progress:
        monkeypatch.setattr(indexing, "STALLED", 1.0)  # of 30 s
        retriever.build(VECTORS)
        said = capsys.readouterr().err
        assert 'waiting for the server to index "retroflow-' in said and ": 7 of 300 vectors indexed" in said
    else:
        words = (
            r"for 0.3 s the server has not gone on with indexing .*:\d+ \(0 of 300 vectors indexed\).*timeout \(30\)"
        )
        with pytest.raises(RetrieverError, match=words):
            retriever.build(VECTORS)
    end(process)


def test_a_stalled_server_is_given_up() -> None:
    process, url = start(FAKE_STALLS="100")
    with pytest.raises(RetrieverError, match="no answer within 1 s"):
        new(url, search=QdrantSearch(timeout=1, retries=0)).build(VECTORS)
    end(process)


def test_the_key_comes_from_the_environment_and_is_written_nowhere(tmp_path: Path, monkeypatch: Any) -> None:
    process, url = start(FAKE_KEY="hunter2")
    with pytest.raises(UsageError, match="wants an API key, and none is in .* QDRANT_API_KEY"):
        new(url).build(VECTORS)
    monkeypatch.setenv("QDRANT_API_KEY", "another")
    with pytest.raises(UsageError, match="does not accept the API key that is in .* QDRANT_API_KEY"):
        new(url).build(VECTORS)
    monkeypatch.setenv("QDRANT_API_KEY", "hunter2")
    retriever = new(url)
    with pytest.warns(UserWarning, match="insecure connection"):
        retriever.build(VECTORS)
    retriever.save(tmp_path / "index")
    assert "hunter2" not in json.dumps(retriever.fingerprint())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    end(process)


def test_a_server_that_dies_while_keys_are_added_leaves_the_saved_index(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "REQUEST_POINTS", 100)
    more = np.random.default_rng(1).normal(size=(400, 8)).astype(np.float32)
    process, url = start(log=tmp_path / "log", FAKE_DIES_AFTER="5")
    retriever = new(url)
    retriever.build(VECTORS)
    retriever.save(tmp_path / "before")
    before = retriever.search(VECTORS, 5)
    with pytest.raises(RetrieverError, match="sending vectors at .* failed"):
        retriever.add(more)
    with pytest.raises(RetrieverError, match="no index to search"):
        retriever.search(VECTORS, 5)
    process.wait()
    process, url = start(int(url.rpartition(":")[2]), tmp_path / "log")
    retriever.load(tmp_path / "before")
    assert np.array_equal(retriever.search(VECTORS, 5).ids, before.ids)
    retriever.add(more)
    assert (retriever.search(more, 1).ids[:, 0] == 300 + np.arange(400)).all()
    end(process)


def test_many_changes_are_joined_and_older_indexes_stay(url: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Beside brute force, with twins whose scores are equal."""
    monkeypatch.setattr(module, "MOST_PARTS", 2)
    monkeypatch.setattr(module, "MOST_REMOVED", 60)
    generator, vectors = np.random.default_rng(3), np.repeat(VECTORS, 2, axis=0)
    retriever, live, ever, folders = new(url, search=QdrantSearch(exact=True)), np.arange(200), 200, []
    retriever.build(vectors[:200])
    for step in range(5):
        gone = generator.choice(live, 25, replace=False)
        retriever.remove(gone)
        live, ever = np.append(np.setdiff1d(live, gone), np.arange(ever, ever + 40)), ever + 40
        retriever.add(vectors[ever - 40 : ever])
        folders.append((tmp_path / str(step), live))
        retriever.save(folders[-1][0])
    for folder, kept in folders:
        opened = new(url, search=QdrantSearch(exact=True))
        opened.load(folder)
        distances = np.square(vectors[kept][None].astype(np.float64) - VECTORS[:20, None]).sum(axis=2)
        order = np.lexsort((np.broadcast_to(kept, distances.shape), distances.round(5)))
        assert opened.search(VECTORS[:20], 9).ids.tolist() == kept[order[:, :9]].tolist()
    parts = [len(json.loads((folder / "backend" / "qdrant.json").read_text())["parts"]) for folder, _ in folders]
    assert max(parts) <= 3 and 1 in parts


def test_what_is_not_saved_is_deleted(url: str, saved: Path) -> None:
    client, retriever = QdrantClient(url=url, check_compatibility=False), new(url, collection="own")
    retriever.build(VECTORS)
    (name,) = retriever._retriever._unsaved  # type: ignore[attr-defined]
    assert client.collection_exists(name)
    del retriever
    assert not client.collection_exists(name) and client.collection_exists(collection_of(saved))


def test_another_program_that_answers_is_no_qdrant(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert process.stdout is not None
    port = process.stdout.readline().split(" port ")[1].split()[0]
    with pytest.raises(RetroflowError, match="what answers there is not Qdrant. Set retriever.url"):
        new(f"http://127.0.0.1:{port}", build=QdrantBuild(m=8)).build(VECTORS)
    end(process)
