"""Artifacts are whole or absent, and no byte of one can change unseen."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retroflow.errors import DamagedDataError, RetroflowError
from retroflow.store import artifact
from retroflow.store.array_file import map_array
from retroflow.store.artifact import artifact_folder, building, check_parents, commit, finished_manifest, open_artifact
from retroflow.store.atomic import disk_errors, write_file
from retroflow.store.kept import kept_folder
from retroflow.store.manifest import Manifest, read_manifest
from retroflow.store.pieces import Pieces, join_pieces

INPUTS = {"version": 1, "letters": "abc"}


def write_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"a": 1}')


def make(artifacts: Path, inputs: dict[str, object] = INPUTS) -> Path:
    """A small artifact of an array of two pieces and a folder with one file."""
    folder = artifact_folder(artifacts, "chunks", inputs)
    with building(folder, print) as partial:
        assert partial is not None
        values = np.arange(20, dtype=np.uint16).reshape(5, 4)
        pieces = Pieces(artifacts / "pieces")
        pieces.folder.mkdir()
        for number, rows in enumerate((slice(0, 3), slice(3, 5))):
            pieces.write(number, {"train/tokens": values[rows]})
        files = join_pieces(partial, pieces, ["", ""])
        shutil.rmtree(pieces.folder)
        files |= kept_folder(partial, "tokenizer", write_tokenizer)
        manifest = Manifest("chunks", inputs, info={"n": 5}, files=files, component={"name": "some", "k": 1})
        commit(partial, manifest, folder)
    return folder


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


def test_an_artifact_is_read_back_as_written_and_loads_with_numpy(tmp_path: Path) -> None:
    folder = make(tmp_path)
    manifest = open_artifact(folder, kind="chunks")
    mapped = map_array(folder, "train/tokens.npy", manifest.files["train/tokens.npy"])
    np.testing.assert_array_equal(mapped, np.arange(20).reshape(5, 4))
    np.testing.assert_array_equal(np.load(folder / "train/tokens.npy"), mapped)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".locks", ".verified", folder.name]


def test_every_flipped_byte_of_every_file_is_found_and_the_file_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path)
    open_artifact(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) == 3
    for path in files:
        for position in range(path.stat().st_size):
            flip(path, position)
            with pytest.raises(DamagedDataError, match="Delete the folder") as caught:
                open_artifact(folder)
            assert path.name in str(caught.value)
            assert caught.value.exit_code == 3
            flip(path, position)
    open_artifact(folder)


def test_a_flipped_byte_is_found_when_size_and_modification_time_are_as_before(tmp_path: Path) -> None:
    folder = make(tmp_path)
    open_artifact(folder)
    path = folder / "train/tokens.npy"
    before = path.stat()
    with path.open("r+b") as stream:
        stream.seek(140)
        stream.write(b"\xff")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DamagedDataError, match="SHA-256"):
        open_artifact(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "were written"),
        (lambda path: path.write_bytes(path.read_bytes() + b"0"), "were written"),
    ],
)
def test_missing_shorter_and_longer_files_are_refused(tmp_path: Path, damage, message: str) -> None:
    folder = make(tmp_path)
    damage(folder / "train/tokens.npy")
    with pytest.raises(DamagedDataError, match=message):
        open_artifact(folder)


def test_a_manifest_that_is_missing_nonsense_or_of_another_folder_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path)
    raw = (folder / "manifest.json").read_bytes()
    for content in (b"", b"[]", b"{}", b'{"format_version": 1}', b"\xff", raw[:-1], raw.replace(b" ", b"  ", 1)):
        (folder / "manifest.json").write_bytes(content)
        with pytest.raises(DamagedDataError, match="manifest.json"):
            open_artifact(folder)
    (folder / "manifest.json").write_bytes(raw.replace(b'"format_version": 1', b'"format_version": 2'))
    with pytest.raises(DamagedDataError, match="format version is 2"):
        open_artifact(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(DamagedDataError, match=r"manifest\.json is missing"):
        open_artifact(folder)
    (folder / "manifest.json").write_bytes(raw)
    renamed = folder.rename(tmp_path / "chunks-0000000000000000")
    with pytest.raises(DamagedDataError, match="another artifact"):
        open_artifact(renamed)


def test_absent_and_foreign_artifacts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RetroflowError, match="run retroflow prepare"):
        open_artifact(tmp_path / "chunks-1")
    folder = make(tmp_path)
    with pytest.raises(RetroflowError, match="holds chunks, not index"):
        open_artifact(folder, kind="index")


def test_bytes_are_hashed_once_and_again_when_a_file_is_touched(tmp_path: Path, monkeypatch) -> None:
    folder = make(tmp_path)
    hashed: list[int] = []
    original = artifact.first_difference
    monkeypatch.setattr(artifact, "first_difference", lambda *given: (hashed.append(1), original(*given))[1])
    open_artifact(folder)
    open_artifact(folder)
    assert len(hashed) == 1
    os.utime(folder / "train/tokens.npy")
    open_artifact(folder)
    assert len(hashed) == 2
    (tmp_path / ".verified" / f"{folder.name}.json").write_bytes(b"not json")
    open_artifact(folder)
    assert len(hashed) == 3


def test_bytes_in_a_read_only_folder_are_hashed_once_in_a_process(tmp_path: Path, monkeypatch) -> None:
    folder = make(tmp_path)
    hashed: list[int] = []
    original = artifact.first_difference
    monkeypatch.setattr(artifact, "first_difference", lambda *given: (hashed.append(1), original(*given))[1])

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(artifact, "write_file", refuse)
    open_artifact(folder)
    open_artifact(folder)
    assert len(hashed) == 1
    flip(folder / "train/tokens.npy", -1)
    with pytest.raises(DamagedDataError, match=r"train/tokens\.npy"):
        open_artifact(folder)


def test_an_artifact_moves_with_its_artifacts_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    folder = make(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    open_artifact(tmp_path / "b" / folder.name)


def test_the_same_inputs_give_the_same_bytes_wherever_and_whenever(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()
    other = make(tmp_path / "a", INPUTS | {"letters": "abd"})
    assert other.name != first.name


def test_an_artifact_of_other_parents_is_refused(tmp_path: Path) -> None:
    manifest = Manifest("embeddings", {}, parents={"chunks": {"fingerprint": "f", "content": "1"}})
    check_parents(tmp_path, manifest, {"chunks": {"fingerprint": "f", "content": "1"}})
    with pytest.raises(DamagedDataError, match="another chunks-f than the present one"):
        check_parents(tmp_path, manifest, {"chunks": {"fingerprint": "f", "content": "2"}})


def test_work_killed_between_manifest_and_rename_is_taken_over(tmp_path: Path) -> None:
    folder = make(tmp_path)
    partial = folder.rename(folder.with_name(f"{folder.name}.partial"))
    (partial / "manifest.json.99.tmp").write_bytes(b"half")
    with building(folder, print) as again:
        assert again == partial
        manifest = finished_manifest(again)
        assert manifest is not None
        commit(again, manifest, folder)
    open_artifact(folder)
    assert not list(folder.glob("*.tmp"))


WAITER = """
import sys
from pathlib import Path
from retroflow.store.artifact import building
with building(Path(sys.argv[1]), lambda text: print(text, flush=True)) as partial:
    print("got", partial, flush=True)
"""


def test_a_second_process_says_who_holds_the_lock_waits_and_finds_the_artifact(tmp_path: Path) -> None:
    folder = artifact_folder(tmp_path, "chunks", {})
    with building(folder, print) as partial:
        waiter = subprocess.Popen([sys.executable, "-c", WAITER, str(folder)], stdout=subprocess.PIPE, text=True)
        assert waiter.stdout is not None and partial is not None
        line = waiter.stdout.readline()
        assert f"/{os.getpid()} since " in line and "locked by" in line and folder.name in line
        commit(partial, Manifest("chunks", {}), folder)
    assert waiter.communicate(timeout=300)[0].strip() == "got None"


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    folder = artifact_folder(tmp_path, "chunks", {})
    code = WAITER + "    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    assert subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True).returncode == -9
    said: list[str] = []
    with building(folder, said.append) as partial:
        assert partial is not None
    assert not said


def test_a_file_is_replaced_whole_or_kept(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_new_files_have_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = make(tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o640}


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "no space is left"), (errno.EROFS, "Change its permissions"), (errno.EIO, "Check the disk")],
)
def test_disk_errors_name_the_folder_and_the_remedy(number: int, message: str) -> None:
    with pytest.raises(RetroflowError, match=message) as caught, disk_errors(Path("artifacts")):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == 1
    assert "artifacts" in str(caught.value) and "data.artifacts_folder" in str(caught.value)


def test_a_manifest_reads_back_equal(tmp_path: Path) -> None:
    folder = make(tmp_path)
    manifest = read_manifest(folder)
    assert manifest.render() == (folder / "manifest.json").read_bytes()
    assert manifest.name == folder.name


def test_windows_is_refused_in_one_sentence_when_the_store_is_imported() -> None:
    program = (
        "import sys\nfrom retroflow.cli.console import exit_code_of\nsys.platform = 'win32'\n"
        "try:\n    import retroflow.store.atomic\n"
        "except Exception as error:\n    sys.exit(exit_code_of(error, show_traceback=False))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 1
    assert run.stderr.startswith("error: retroflow does not run on Windows") and "WSL 2" in run.stderr
    assert run.stderr.count("\n") == 1


def test_two_writers_of_one_file_never_share_a_sibling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 7)  # as two machines may have it
    siblings, replace_file = [], os.replace

    def interrupted(source: Path, target: Path) -> None:
        siblings.append(source)
        if len(siblings) == 1:  # the other machine writes between our writing and our renaming
            write_file(target, b"theirs")
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    write_file(tmp_path / "piece", b"ours")
    assert len(set(siblings)) == 2
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"ours"]
