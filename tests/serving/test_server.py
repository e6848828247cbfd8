"""The server process: connections are bounded."""

import socket
import threading

import pytest

uvicorn = pytest.importorskip("uvicorn")

from retroflow.serving import server  # noqa: E402
from retroflow.serving.service import Service  # noqa: E402
from tests.waiting import wait_until  # noqa: E402


def test_a_connection_above_the_bound_is_answered_with_503(opened, monkeypatch) -> None:
    made = []

    class Kept(uvicorn.Server):
        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            made.append(self)

    def status() -> str:
        with socket.create_connection(address, timeout=60) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            return connection.makefile("rb").readline().split()[1].decode()

    monkeypatch.setattr(uvicorn, "Server", Kept)
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    thread = threading.Thread(target=server.serve, args=(Service(opened, name="small"),), kwargs={"port": 0})
    thread.start()
    try:
        wait_until(lambda: made and made[0].started)
        address = made[0].servers[0].sockets[0].getsockname()
        connections = made[0].server_state.connections
        with socket.create_connection(address):
            wait_until(lambda: len(connections) == 1)
            assert status() == "503"
        wait_until(lambda: not connections)
        assert status() == "200"
    finally:
        for each in made:
            each.should_exit = True
        thread.join(60)
    assert not thread.is_alive()
