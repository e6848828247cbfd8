"""Blocks and pieces: resumed at the first missing one, the same bytes in any order, an error on a full disk."""

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
from retroflow.store.blocks import BlockedArrays, keep_folder, kept_folder
from retroflow.store.pieces import (
    Pieces,
    discard_pieces,
    has_shards,
    join_pieces,
    note_shard,
    noted_shards,
    pieces_folder,
)

IDS = ArraySpec("train/ids.npy", np.dtype(np.int64), (10, 2))
SCORES = ArraySpec("train/scores.npy", np.dtype(np.float32), (10, 2))


def blocks_in(folder: Path) -> BlockedArrays:
    return BlockedArrays(folder, "train", [IDS, SCORES], rows_per_block=4)


def rows_of(blocks: BlockedArrays, block: int) -> dict[str, np.ndarray]:
    values = np.arange(20).reshape(10, 2)[blocks.rows(block)]
    return {IDS.name: values, SCORES.name: values / 2}


def test_blocks_written_in_any_order_over_several_runs_give_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name, runs in (("a", [[0, 1, 2]]), ("b", [[2], [1], [0]])):
        for run in runs:
            with blocks_in(tmp_path / name) as blocks:
                for block in run:
                    blocks.write(block, rows_of(blocks, block))
        with blocks_in(tmp_path / name) as blocks:
            assert blocks.missing() == []
            entries = blocks.entries()
        contents.append(((tmp_path / name / IDS.name).read_bytes(), entries))
    assert contents[0] == contents[1]
    np.testing.assert_array_equal(
        map_array(tmp_path / "a", IDS.name, contents[0][1][IDS.name]), np.arange(20).reshape(10, 2)
    )


def test_a_block_with_other_bytes_than_its_marker_is_missing(tmp_path: Path) -> None:
    with blocks_in(tmp_path) as blocks:
        assert blocks.missing() == [0, 1, 2]
        for block in (0, 1):
            blocks.write(block, rows_of(blocks, block))
        assert blocks.missing() == [2]
    path = tmp_path / SCORES.name
    content = bytearray(path.read_bytes())
    content[-25] ^= 1  # row 6
    path.write_bytes(bytes(content))
    (tmp_path / "blocks/train/00000002.json").write_text("{")
    with blocks_in(tmp_path) as blocks:
        assert blocks.missing() == [1, 2]


def test_an_array_without_rows_has_a_readable_file(tmp_path: Path) -> None:
    spec = ArraySpec("train/ids.npy", np.dtype(np.int64), (0, 2))
    with BlockedArrays(tmp_path, "train", [spec], 4) as blocks:
        entry = blocks.entries()[spec.name]
    assert np.load(tmp_path / spec.name).shape == (0, 2)
    assert map_array(tmp_path, spec.name, entry).shape == (0, 2)
    release_pages(map_array(tmp_path, spec.name, entry))


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for block, num_rows in ((2, 5), (0, 5), (0, 3), (0, 0)):  # more would overwrite the next block, fewer leave a gap
        with (
            blocks_in(tmp_path) as blocks,
            pytest.raises(ValueError, match=rf"{num_rows} rows for \d of block {block}"),
        ):
            blocks.write(block, {IDS.name: np.zeros((num_rows, 2)), SCORES.name: np.zeros((num_rows, 2))})
    spec = ArraySpec("alone.npy", np.dtype(np.int64), (3,))
    writer = ArrayWriter(tmp_path, spec)
    with pytest.raises(ValueError, match="do not fit"):
        writer.write(2, np.zeros(2))
    with pytest.raises(ValueError, match="a value does not fit into int64"):
        writer.write(0, np.array([1, 2**63], dtype=np.uint64))
    writer.close()


def test_a_kept_folder_is_known_again_until_a_byte_or_a_name_changes(tmp_path: Path) -> None:
    folder = tmp_path / "embedder"
    assert kept_folder(tmp_path, "embedder") is None
    folder.mkdir()
    (folder / "state.bin").write_bytes(b"123")
    entries = keep_folder(tmp_path, "embedder")
    assert kept_folder(tmp_path, "embedder") == entries
    (folder / "more.bin").write_bytes(b"")
    assert kept_folder(tmp_path, "embedder") is None
    (folder / "more.bin").unlink()
    (folder / "state.bin").write_bytes(b"124")
    assert kept_folder(tmp_path, "embedder") is None


def test_an_embedder_without_state_keeps_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "embedder").mkdir()
    assert keep_folder(tmp_path, "embedder") == {}
    assert kept_folder(tmp_path, "embedder") == {}


def test_pieces_are_joined_in_their_order_and_broken_or_foreign_ones_are_missing(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path / "group")
    for piece in (1, 0):
        arrays = {"a": np.full((piece + 1, 3), piece, np.int32), "b": np.arange(piece)}
        pieces.write(piece, arrays, source=f"text {piece}")
    assert pieces.present() == {0, 1}
    assert pieces.find(0, "text 0") is not None and pieces.find(1, "text 1") is not None
    assert pieces.find(0, "another text") is None and pieces.find(2) is None
    specs = {
        "a": ArraySpec("a.npy", np.dtype(np.uint16), (3, 3)),
        "b": ArraySpec("b.npy", np.dtype(np.int64), (1,)),
    }
    entries = join_pieces(tmp_path, pieces, ["text 0", "text 1"], specs, dict)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy")[:, 0], [0, 1, 1])
    assert entries["a.npy"].shape == (3, 3)
    path = tmp_path / "group/00000001.piece"
    content = path.read_bytes()
    for broken in (content[:-1], b"", content[:20], b"{}\n", bytes([*content[:-1], content[-1] ^ 1])):
        path.write_bytes(broken)
        assert pieces.find(1, "text 1") is None
    with pytest.raises(DamagedDataError, match="00000001.piece"):
        join_pieces(tmp_path, pieces, ["text 0", "text 1"], specs, dict)


def test_pieces_of_which_more_rows_are_written_than_they_have_leave_no_gap(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path / "group")
    for piece in range(3):
        pieces.write(piece, {"a": np.array([piece, piece])})

    def with_a_leading_row(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"a": np.concatenate([[9], arrays["a"]])} if arrays["a"][0] == 0 else arrays

    def joined(num_rows: int, shift: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> list[int]:
        join_pieces(tmp_path, pieces, [""] * 3, {"a": ArraySpec("a.npy", np.dtype(np.int64), (num_rows,))}, shift)
        return np.load(tmp_path / "a.npy").tolist()

    assert joined(7, with_a_leading_row) == [9, 0, 0, 1, 1, 2, 2]
    for num_rows, shift in ((6, with_a_leading_row), (7, dict)):
        with pytest.raises(ValueError, match=r"a\.npy"):
            joined(num_rows, shift)


def test_a_piece_for_a_folder_that_was_discarded_is_an_error_and_makes_no_folder(tmp_path: Path) -> None:
    artifact = tmp_path / "chunks-0"
    basis = pieces_folder(artifact, {"tokenizer": 1})
    assert basis != pieces_folder(artifact, {"tokenizer": 2})
    basis.mkdir(parents=True)
    note_shard(basis, 2, 3)
    assert noted_shards(basis) == {(2, 3)} and has_shards(artifact)
    Pieces(basis / "group").write(0, {"a": np.arange(3)})
    discard_pieces(artifact)
    assert not has_shards(artifact)
    for late in (lambda: Pieces(basis / "group").write(1, {"a": np.arange(3)}), lambda: note_shard(basis, 1, 3)):
        with pytest.raises(FileNotFoundError):
            late()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_at_allocation_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        blocks_in(tmp_path)


BIG_FILE = """
import sys
import numpy as np
from pathlib import Path
from retroflow.errors import RetroflowError
from retroflow.store.atomic import disk_errors
from retroflow.store.array_file import ArraySpec
from retroflow.store.blocks import BlockedArrays
spec = ArraySpec("big.npy", np.dtype(np.uint8), (64 << 20, 1))
try:
    with disk_errors(Path(sys.argv[1])):
        BlockedArrays(Path(sys.argv[1]), "train", [spec], 1 << 20)
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
