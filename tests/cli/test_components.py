import json

import pytest

from retroflow.cli.main import run

Capture = pytest.CaptureFixture[str]


def test_every_kind_and_name_is_listed_with_its_distribution(capsys: Capture) -> None:
    assert run(["components"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for kind in ("corpus:", "embedder:", "retriever:", "model:", "tracker:"):
        assert kind in lines
    (exact,) = [line for line in lines if line.split()[0] == "exact"]
    assert exact.split()[1:] == ["retroflow", exact.split()[2], "available"]


def test_what_is_missing_comes_with_its_pip_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retroflow.registry.missing_modules", lambda entry: list(entry.requires))
    assert run(["components"]) == 0
    (scann,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[0] == "scann"]
    assert 'pip install "retroflow[scann]"' in scann


def test_json_says_the_same(capsys: Capture) -> None:
    assert run(["components", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["model"][0].keys() == {"name", "owner", "available", "remedy"}
    assert [row["name"] for row in listed["retriever"]][:4] == ["exact", "faiss", "scann", "hnsw"]
