"""`python -m retroflow` is `retroflow`."""

import runpy
import sys

import pytest


def test_the_module_is_the_command(monkeypatch, capsys) -> None:
    monkeypatch.setattr("retroflow.cli.main.end_within", sys.exit)  # which would end the tests later
    monkeypatch.setattr(sys, "argv", ["python -m retroflow", "fitt"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("retroflow", run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err == ("error: No such command 'fitt'. Did you mean 'fit'? Try: retroflow --help\n")


def test_importing_the_module_runs_nothing(capsys) -> None:
    """Processes that are started by spawn import the main module again."""
    runpy.run_module("retroflow", run_name="__mp_main__")
    assert capsys.readouterr() == ("", "")
