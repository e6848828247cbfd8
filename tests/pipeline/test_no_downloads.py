"""While a command only looks, nothing is asked of the network, whenever Hugging Face's libraries were imported."""

import os
import socket
import subprocess
import sys

import huggingface_hub.constants
import pytest

from retroflow.embedding.model_files import find_model_files
from retroflow.errors import UsageError
from retroflow.pipeline.no_downloads import no_downloads


@pytest.fixture
def connections(monkeypatch):
    """Hosts that somebody tried to reach."""
    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


def test_a_library_that_is_already_imported_is_kept_off_the_network(connections, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with no_downloads(), pytest.raises(UsageError, match="was not found"):
        find_model_files("nobody/nothing")
    assert connections == []


def test_everything_is_given_back(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    with no_downloads():
        assert huggingface_hub.constants.is_offline_mode()
        assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"
    assert huggingface_hub.constants.HF_HUB_OFFLINE is before
    assert (os.environ.get("HF_HUB_OFFLINE"), os.environ["HF_DATASETS_OFFLINE"]) == (None, "0")


def test_a_library_that_is_imported_meanwhile_is_online_afterwards():
    program = (
        "from retroflow.pipeline.no_downloads import no_downloads\n"
        "with no_downloads():\n"
        "    import huggingface_hub.constants as constants\n"
        "    assert constants.is_offline_mode()\n"
        "assert not constants.is_offline_mode()"
    )
    environment = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=environment)
