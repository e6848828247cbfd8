from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from starlette.testclient import TestClient

from retroflow.serving.app import make_app
from retroflow.serving.options import Keys, ServerOptions
from retroflow.serving.service import Service
from tests.serving.small import READ_KEY, WRITE_KEY, make_database, open_model


@pytest.fixture(scope="session")
def database_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database; to be copied by who changes it."""
    folder = tmp_path_factory.mktemp("serving") / "db"
    make_database(folder)
    return folder


@pytest.fixture(scope="module")
def opened(database_folder: Path):
    from retroflow.database.database import Database

    return open_model(Database.open(database_folder))


@pytest.fixture(scope="module")
def service(opened) -> Service:
    options = ServerOptions(
        max_running=4, max_waiting=32, max_body_bytes=20_000, max_prompt_tokens=200, max_new_tokens=64
    )
    return Service(opened, name="small", options=options, keys=Keys(READ_KEY, WRITE_KEY))


@pytest.fixture(scope="module")
def client(service: Service):
    headers = {"Authorization": f"Bearer {READ_KEY}"}
    with TestClient(make_app(service), base_url="http://127.0.0.1:8000", headers=headers) as found:
        yield found
