"""`retroflow doctor` prints findings as they come, one JSON object on request, and fails if something must be mended."""

import json

import pytest

from retroflow.cli.main import run
from retroflow.doctor import components as component_check
from retroflow.doctor import machine
from retroflow.doctor.machine import Finding

GOOD = Finding("GPU", "note", "none")
BAD = Finding("folder", "problem", "full", "free space")


@pytest.fixture
def examined(monkeypatch):
    def install(*findings):
        monkeypatch.setattr(component_check, "KINDS", ())
        monkeypatch.setattr(machine, "examine", lambda folder, loaded: iter(findings))

    return install


@pytest.mark.parametrize(("findings", "code"), [((GOOD,), 0), ((GOOD, BAD), 1)])
def test_exit_code(examined, capsys, findings, code):
    examined(*findings)
    assert run(["doctor"]) == code
    assert run(["doctor", "--json"]) == code


def test_lines_for_people(examined, capsys):
    examined(GOOD, BAD)
    run(["doctor"])
    assert capsys.readouterr().out.splitlines() == [
        "note     GPU: none",
        "problem  folder: full",
        "         -> free space",
        "1 to be mended",
    ]


def test_one_object_for_scripts(examined, capsys):
    examined(GOOD, BAD)
    run(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["findings"][1]["name"] == "folder"
