"""Folders that are there whole or not at all, where the name given is a link."""

from pathlib import Path

import pytest

from retroflow.errors import RetroflowError, UsageError
from retroflow.store.atomic import whole_folder


def fill(folder: Path) -> None:
    with whole_folder(folder) as partial:
        (partial / "file").write_text("content")


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_an_empty_or_a_new_folder_is_filled_and_stays_a_link(tmp_path: Path, exists: bool) -> None:
    target, link = tmp_path / "disk" / "target", tmp_path / "link"
    target.parent.mkdir()
    if exists:
        target.mkdir()
    link.symlink_to(target)
    fill(link)
    assert link.is_symlink() and (target / "file").read_text() == "content"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_link_to_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "link").symlink_to("full")
    with pytest.raises(UsageError, match="is not empty"):
        fill(tmp_path / "link")


def test_a_link_that_leads_to_itself_is_told(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(RetroflowError, match="cannot be written"):
        fill(tmp_path / "loop")


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is the current folder"):
        fill(Path())
    assert list(tmp_path.iterdir()) == []
