"""Pieces and the arrays they are joined to: the same bytes in any order, broken ones missing, an error on a full disk."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retroflow.errors import DamagedDataError
from retroflow.store.array_file import ArraySpec, ArrayWriter, map_array, release_pages
from retroflow.store.pieces import Pieces, discard_pieces, has_shards, join_pieces, pieces_folder


def pieces_in(folder: Path) -> Pieces:
    folder.mkdir()
    return Pieces(folder)


def test_pieces_are_joined_in_their_order_and_broken_or_foreign_ones_are_missing(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "pieces")
    for piece in (1, 0):
        arrays = {"a": np.full((piece + 1, 3), piece, np.uint16), "b": np.arange(piece)}
        pieces.write(piece, arrays, source=f"text {piece}")
    assert pieces.present() == {0, 1}
    assert pieces.find(0, "text 0") is not None and pieces.find(1, "text 1") is not None
    assert pieces.find(0, "another text") is None and pieces.find(2) is None
    entries = join_pieces(tmp_path, pieces, ["text 0", "text 1"])
    assert np.load(tmp_path / "a.npy")[:, 0].tolist() == [0, 1, 1] and np.load(tmp_path / "b.npy").tolist() == [0]
    assert entries["a.npy"].shape == (3, 3) and entries["a.npy"].dtype == "<u2"
    np.testing.assert_array_equal(map_array(tmp_path, "a.npy", entries["a.npy"]), np.load(tmp_path / "a.npy"))
    path = tmp_path / "pieces/00000001.piece"
    content = path.read_bytes()
    for broken in (content[:-1], b"", content[:20], b"{}\n", bytes([*content[:-1], content[-1] ^ 1])):
        path.write_bytes(broken)
        assert pieces.find(1, "text 1") is None
    path.write_bytes(bytes([*content[:-1], content[-1] ^ 1]))
    with pytest.raises(DamagedDataError, match="00000001.piece"):
        join_pieces(tmp_path, pieces, ["text 0", "text 1"])


def test_pieces_need_not_have_the_same_arrays(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "pieces")
    for number, split in enumerate(("train", "train", "valid")):
        pieces.write(number, {f"{split}/ids": np.array([[number, 0]])})
    assert join_pieces(tmp_path, pieces, [""] * 3).keys() == {"train/ids.npy", "valid/ids.npy"}
    assert np.load(tmp_path / "train/ids.npy").tolist() == [[0, 0], [1, 0]]


def test_an_array_without_rows_has_a_readable_file(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "pieces")
    pieces.write(0, {"ids": np.empty((0, 2), np.int64)})
    entry = join_pieces(tmp_path, pieces, [""])["ids.npy"]
    assert np.load(tmp_path / "ids.npy").shape == (0, 2)
    assert map_array(tmp_path, "ids.npy", entry).shape == (0, 2)
    release_pages(map_array(tmp_path, "ids.npy", entry))


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    spec = ArraySpec("alone.npy", np.dtype(np.int64), (3,))
    writer = ArrayWriter(tmp_path, spec)
    with pytest.raises(ValueError, match="do not fit"):
        writer.write(2, np.zeros(2))
    with pytest.raises(ValueError, match="a value does not fit into int64"):
        writer.write(0, np.array([1, 2**63], dtype=np.uint64))
    writer.close()


def test_pieces_are_joined_as_they_are_changed_and_leave_no_gap(tmp_path: Path) -> None:
    pieces = pieces_in(tmp_path / "pieces")
    for piece in range(3):
        pieces.write(piece, {"a": np.array([piece, piece])})

    def joined(change: Callable[[np.ndarray], np.ndarray]) -> list[int]:
        join_pieces(tmp_path, pieces, [""] * 3, lambda arrays: {"a": change(arrays["a"])})
        return np.load(tmp_path / "a.npy").tolist()

    assert joined(lambda rows: rows + 5) == [5, 5, 6, 6, 7, 7]
    for change in (lambda rows: rows[:1], lambda rows: np.concatenate([rows, rows])):
        with pytest.raises(ValueError, match=r"a\.npy"):
            joined(change)


def test_a_piece_for_a_folder_that_was_discarded_is_an_error_and_makes_no_folder(tmp_path: Path) -> None:
    artifact = tmp_path / "chunks-0"
    basis = pieces_folder(artifact, {"tokenizer": 1})
    assert basis != pieces_folder(artifact, {"tokenizer": 2})
    basis.mkdir(parents=True)
    pieces = Pieces(basis)
    pieces.note_shard(2, 3)
    assert pieces.shards() == {(2, 3)} and has_shards(artifact)
    pieces.write(0, {"a": np.arange(3)})
    discard_pieces(artifact)
    assert not has_shards(artifact) and pieces.present() == set()
    for late in (lambda: pieces.write(1, {"a": np.arange(3)}), lambda: pieces.note_shard(1, 3)):
        with pytest.raises(FileNotFoundError):
            late()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_at_allocation_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pieces = pieces_in(tmp_path / "pieces")
    pieces.write(0, {"a": np.arange(3)})
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        join_pieces(tmp_path, pieces, [""])


BIG_FILE = """
import sys
import numpy as np
from pathlib import Path
from retroflow.errors import RetroflowError
from retroflow.store.atomic import disk_errors
from retroflow.store.array_file import ArraySpec, ArrayWriter
spec = ArraySpec("big.npy", np.dtype(np.uint8), (64 << 20, 1))
try:
    with disk_errors(Path(sys.argv[1])):
        ArrayWriter(Path(sys.argv[1]), spec)
except RetroflowError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_really_full_disk_ends_in_one_line_and_not_in_sigbus(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        run = subprocess.run([sys.executable, "-c", BIG_FILE, disk], capture_output=True, text=True)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert run.returncode == 1
    assert "no space is left" in run.stdout and run.stderr == ""
