"""The database over HTTP: what is added is read by the next token, what is removed by none."""

import shutil

import pytest
from starlette.testclient import TestClient

from retroflow.database.database import Database
from retroflow.serving.app import make_app
from retroflow.serving.options import Keys
from retroflow.serving.service import Service
from tests.database.small import text_of
from tests.serving.small import WRITE_KEY, open_model, prompt_of


@pytest.fixture
def folder(tmp_path, database_folder):
    shutil.copytree(database_folder, tmp_path / "db")
    return tmp_path / "db"


@pytest.fixture
def service(folder) -> Service:
    return Service(open_model(Database.open(folder)), name="small", keys=Keys(None, WRITE_KEY))


@pytest.fixture
def client(service):
    headers = {"Authorization": f"Bearer {WRITE_KEY}"}
    with TestClient(make_app(service), base_url="http://127.0.0.1", headers=headers) as found:
        yield found


def read_by(client, prompt):
    answer = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 8, "temperature": 0}).json()
    return {each["document"] for each in answer["retroflow"]["sources"]}, answer["retroflow"]["database"]["version"]


def test_a_change_is_read_by_the_next_request_and_found_by_search(client) -> None:
    prompt = prompt_of(3, 10)
    before, version = read_by(client, prompt)
    assert "new" not in before and version == 1
    found = client.post("/v1/retrieval/search", json={"query": prompt, "k": 1}).json()["results"]
    assert found[0]["document"] != "new" and set(found[0]) == {"document", "title", "source", "text", "score", "chunk"}
    document = {"id": "new", "text": prompt + " " + prompt, "title": "New", "source": "https://new.test"}
    added = client.post("/v1/retrieval/add", json={"documents": [document]}).json()
    assert (added["added"], added["version"], added["database"]["version"]) == (1, 2, 2)
    after, version = read_by(client, prompt)
    assert "new" in after and version == 2
    found = client.post("/v1/retrieval/search", json={"query": prompt, "k": 1}).json()["results"]
    assert found[0]["document"] == "new"
    removed = client.post("/v1/retrieval/remove", json={"ids": ["new"]}).json()
    assert (removed["removed"], removed["version"]) == (1, 3)
    assert read_by(client, prompt) == (before, 3)


def test_what_cannot_be_changed_is_refused_and_changes_nothing(client) -> None:
    for verb, body, words in [
        ("add", {"documents": [{"id": "d000", "text": "x"}]}, 'the database has a document "d000"'),
        ("add", {"documents": [{"id": "a", "text": ""}]}, "documents[0].text"),
        ("add", {"documents": [{"id": "a"}]}, "documents[0]: an object with id and text"),
        ("add", {"documents": []}, "documents: a list of 1 to 1000"),
        ("remove", {"ids": ["none"]}, 'the database has no document "none"'),
        ("remove", {"ids": [3]}, "ids[0]: a text"),
    ]:
        answer = client.post(f"/v1/retrieval/{verb}", json=body)
        assert answer.status_code == 400 and words in answer.json()["error"]["message"]
    assert client.get("/v1/models").json()["data"][0]["retroflow"]["database"]["version"] == 1


def test_a_text_that_is_being_written_reads_the_change_from_its_next_window_on(service, client) -> None:
    """The first piece is there before the change; a later window of the same answer reads the new document."""
    body = {"prompt": prompt_of(1), "max_tokens": 60, "temperature": 0}
    text = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    compute, done = service.worker.batch.step, []

    def step() -> None:
        compute()
        done.append(1)
        if len(done) == 20:  # what it is about to write is now in the database
            service.live.add([{"id": "new", "text": text}])

    service.worker.batch.step = step
    sources = client.post("/v1/completions", json=body).json()["retroflow"]["sources"]
    new = [each for each in sources if each["document"] == "new"]
    assert new and min(each["start"] for each in new) > 0


def test_a_change_by_another_process_is_followed(folder, client) -> None:
    Database.open(folder).add([{"id": "elsewhere", "text": text_of(77)}])
    found = client.post("/v1/retrieval/search", json={"query": text_of(77, 8), "k": 1}).json()
    assert found["results"][0]["document"] == "elsewhere" and found["database"]["version"] == 2


def test_requests_wait_for_no_change(folder, service, client) -> None:
    def version():
        return client.get("/v1/models").json()["data"][0]["retroflow"]["database"]["version"]

    Database.open(folder).add([{"id": "elsewhere", "text": text_of(77)}])
    with service.live._lock:  # as a change has it that still joins segments
        assert version() == 1
    assert version() == 2


def test_a_server_without_a_database_generates_and_says_so(folder) -> None:
    tokenizer = Database.open(folder).snapshot.tokenizer
    service = Service(open_model(None, tokenizer), name="small", keys=Keys(None, WRITE_KEY))
    with TestClient(make_app(service), base_url="http://127.0.0.1") as client:
        answer = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 3}).json()
        assert answer["retroflow"] == {"sources": [], "database": None} and answer["search_results"] == []
        headers = {"Authorization": f"Bearer {WRITE_KEY}"}
        for verb, body in [("search", {"query": "a"}), ("remove", {"ids": ["a"]})]:
            refused = client.post(f"/v1/retrieval/{verb}", json=body, headers=headers)
            assert refused.status_code == 400 and "database" in refused.json()["error"]["message"]
