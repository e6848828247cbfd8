"""`retroflow doctor` prints checks as they come, one JSON object on request, and fails if there is a problem."""

import json

import pytest

from retroflow.cli.main import run
from retroflow.doctor import components as component_check
from retroflow.doctor import machine
from retroflow.doctor.machine import Check

GOOD = Check("GPU", "note", "none")
BAD = Check("folder", "problem", "full", "free space")


@pytest.fixture
def examined(monkeypatch):
    def install(*checks):
        monkeypatch.setattr(component_check, "KINDS", ())
        monkeypatch.setattr(machine, "check_machine", lambda folder, loaded: iter(checks))

    return install


@pytest.mark.parametrize(("checks", "code"), [((GOOD,), 0), ((GOOD, BAD), 1)])
def test_exit_code(examined, capsys, checks, code):
    examined(*checks)
    assert run(["doctor"]) == code
    assert run(["doctor", "--json"]) == code


def test_lines_for_people(examined, capsys):
    examined(GOOD, BAD)
    run(["doctor"])
    assert capsys.readouterr().out.splitlines() == [
        "note     GPU: none",
        "problem  folder: full",
        "         -> free space",
        "1 problem",
    ]


def test_one_object_for_scripts(examined, capsys):
    examined(GOOD, BAD)
    run(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["checks"][1]["name"] == "folder"
