"""Folders that libraries write: kept from run to run while every byte is as it was."""

from collections.abc import Callable
from pathlib import Path

import pytest

from retroflow.store.kept import kept_folder


@pytest.fixture
def saved(tmp_path: Path) -> tuple[list[Path], Callable[[Path], None]]:
    """The folders that were filled, and what fills them."""
    filled: list[Path] = []

    def save(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        (folder / "state.bin").write_bytes(b"123")
        filled.append(folder)

    return filled, save


def test_a_folder_is_kept_until_a_byte_or_a_name_changes(
    tmp_path: Path, saved: tuple[list[Path], Callable[[Path], None]]
) -> None:
    filled, save = saved
    folder = tmp_path / "embedder"
    entries = kept_folder(tmp_path, "embedder", save)
    assert kept_folder(tmp_path, "embedder", save) == entries and filled == [folder]
    for number, change in enumerate(
        (
            lambda: (folder / "more.bin").write_bytes(b""),
            lambda: (folder / "state.bin").write_bytes(b"124"),
            lambda: (folder / "state.bin").unlink(),
            lambda: (tmp_path / "kept/embedder.json").write_text("{"),
        ),
        start=2,
    ):
        change()
        assert kept_folder(tmp_path, "embedder", save) == entries
        assert len(filled) == number and [path.name for path in folder.iterdir()] == ["state.bin"]


def test_a_folder_made_from_other_bytes_of_its_parents_is_filled_again(
    tmp_path: Path, saved: tuple[list[Path], Callable[[Path], None]]
) -> None:
    filled, save = saved
    for content, number in (("1", 1), ("1", 1), ("2", 2)):
        kept_folder(tmp_path, "embedder", save, {"chunks": {"fingerprint": "f", "content": content}})
        assert len(filled) == number


def test_half_a_folder_is_thrown_away(tmp_path: Path, saved: tuple[list[Path], Callable[[Path], None]]) -> None:
    def fails(folder: Path) -> None:
        (folder / "half.bin").write_bytes(b"1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept_folder(tmp_path, "embedder", fails)
    assert list(kept_folder(tmp_path, "embedder", saved[1])) == ["embedder/state.bin"]


def test_an_embedder_without_state_keeps_an_empty_folder(tmp_path: Path) -> None:
    calls: list[Path] = []
    assert [kept_folder(tmp_path, "embedder", calls.append) for _ in range(2)] == [{}, {}]
    assert len(calls) == 1
