"""A run whose folder is renamed or deleted ends, and leaves nothing where the folder was."""

import shutil

import pytest

from retroflow.errors import RetroflowError
from retroflow.runs.held_folder import HeldFolder
from retroflow.training import final_report as verdict
from tests.training.jobs import assert_same_run


def test_a_renamed_run_stops_names_its_place_and_can_be_gone_on_with_there(run, interfere, tmp_path):
    place, new = tmp_path / "runs/tiny/0001", tmp_path / "runs/tiny/good"
    undo = interfere(5, lambda: place.rename(new))
    with pytest.raises(RetroflowError, match=f"0001: the run folder was renamed .* resume='{new}'") as caught:
        run()
    assert caught.value.exit_code == 1
    assert not place.exists()
    undo()
    resumed = run(resume=new)
    assert resumed.run_folder == new
    assert_same_run(run("unbroken").run_folder, new)


@pytest.mark.parametrize("options", [{}, {"log_every": 100, "checkpoint_every": 6}])
def test_a_deleted_run_is_not_made_again_in_part(run, interfere, tmp_path, options):
    place = tmp_path / "runs/tiny/0001"
    interfere(5, lambda: shutil.rmtree(place))
    with pytest.raises(RetroflowError, match="0001: the run folder was renamed or deleted .*; start a new run"):
        run(**options)
    assert not place.exists()


def test_another_folder_of_its_name_stays_as_it_is(run, interfere, tmp_path):
    place = tmp_path / "runs/tiny/0001"

    def replace():
        shutil.rmtree(place)
        (place / "checkpoints").mkdir(parents=True)

    interfere(5, replace)
    with pytest.raises(RetroflowError, match="0001: the run folder was renamed or deleted"):
        run()
    assert [path.name for path in place.rglob("*")] == ["checkpoints"]


def test_it_is_noticed_while_evaluating_too(run, monkeypatch, tmp_path):
    place = tmp_path / "runs/tiny/0001"
    original = verdict.measure_report

    def renaming(*args, **options):
        place.rename(place.with_name("good"))
        place.mkdir()
        return original(*args, **options)

    monkeypatch.setattr(verdict, "measure_report", renaming)
    with pytest.raises(RetroflowError, match="0001: the run folder was renamed"):
        run()
    assert not list(place.iterdir())


def test_a_folder_that_is_gone_already(tmp_path):
    with pytest.raises(RetroflowError, match="the run folder was renamed or deleted"):
        HeldFolder(tmp_path / "nowhere")
