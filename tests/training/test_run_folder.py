"""A runs folder that cannot be used is refused before anything is made."""

import pytest

from retroflow.errors import RetroflowError
from retroflow.training import run_folder
from retroflow.training.run_folder import check_runs_folder


def test_a_runs_folder_that_can_be_made_is_not_made_yet(tmp_path):
    check_runs_folder(tmp_path / "new" / "runs")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RetroflowError, match=r"trainer.runs_folder '.*file/runs': .*file is not a folder; choose"):
        check_runs_folder(tmp_path / "file" / "runs")


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(RetroflowError, match="cannot be written; choose a folder") as caught:
        check_runs_folder(tmp_path / "runs")
    assert caught.value.exit_code == 1
