"""A runs folder that cannot be used is refused before anything is made."""

import pytest

from retroflow.errors import RetroflowError
from retroflow.planning.runs_folder import check_runs_folder
from retroflow.runs.folder import RunFolder, list_runs, new_run, write_report
from retroflow.store.sealed_json import render_sealed


def test_a_runs_folder_that_can_be_made_is_not_made_yet(tmp_path):
    check_runs_folder(tmp_path / "new" / "runs")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RetroflowError, match=r"trainer.runs_folder '.*file/runs': .*file is not a folder; choose"):
        check_runs_folder(tmp_path / "file" / "runs")


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "runs").symlink_to("nowhere")
    with pytest.raises(RetroflowError, match="runs is not a folder; choose"):
        check_runs_folder(tmp_path / "runs")


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "retroflow.planning.runs_folder.why_not_writable", lambda folder: "Permission denied"
    )  # root may write everywhere
    with pytest.raises(RetroflowError, match=r"cannot be written \(Permission denied\); choose a folder") as caught:
        check_runs_folder(tmp_path / "runs")
    assert caught.value.exit_code == 1


def test_folders_that_fit_does_not_name_so_are_no_runs(tmp_path):
    for name in ("²", "٣", "0007", "best", "12"):
        (tmp_path / "tiny" / name).mkdir(parents=True)
    (tmp_path / "tiny" / "13").touch()
    assert [run.path.name for run in list_runs(tmp_path, "tiny")] == ["12", "0007"]
    assert new_run(tmp_path, "tiny").path.name == "0013"


@pytest.mark.parametrize(
    ("steps", "max_steps", "by_time", "finished"), [(4, 4, False, True), (3, 4, False, False), (3, 4, True, True)]
)
def test_a_run_is_finished_when_its_training_is_and_it_was_judged(tmp_path, steps, max_steps, by_time, finished):
    run = RunFolder(tmp_path)
    assert not run.is_finished
    write_report(run.report, {"training": {"steps": steps, "max_steps": max_steps, "stopped_by_time": by_time}})
    assert run.is_finished == finished
    report = run.report.read_text()
    run.report.write_text(report.replace('"max_steps": 4', '"max_steps": 2'))
    assert not run.is_finished  # it is judged again
    run.report.write_text(report)
    values = {"trainer": {"max_steps": 9}}
    run.description.write_text(render_sealed({"identity": {"values": values}}, what=""))
    assert run.is_finished == by_time  # it is to be trained longer than the report says
