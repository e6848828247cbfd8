"""Globs and the order of files."""

import os
import socket
from pathlib import Path

import pytest

from retroflow.corpus.files import describe_files, find_files, matches, may_match_below
from retroflow.errors import CorpusError


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("a.py", "**/*.py", True),
        ("a/b/c.py", "**/*.py", True),
        ("a/b/c.py", "*.py", False),
        ("models/bert/modeling_bert.py", "models/*/modeling_*.py", True),
        ("models/a/b/modeling_bert.py", "models/*/modeling_*.py", False),
        ("models/a/b/modeling_bert.py", "models/**/modeling_*.py", True),
        ("models/x.py", "models/**/*.py", True),
        ("a/b", "**", True),
        ("A.PY", "*.py", False),
        ("a1", "a[0-9]", True),
    ],
)
def test_a_glob_matches_whole_paths(name: str, pattern: str, expected: bool) -> None:
    assert matches(name.split("/"), pattern.split("/")) is expected


@pytest.mark.parametrize(
    ("folder", "pattern", "expected"),
    [
        ("models", "models/*/*.py", True),
        ("models/bert", "models/*/*.py", True),
        ("models/bert/deep", "models/*/*.py", False),
        ("other", "models/*/*.py", False),
        ("any/thing", "**/*.py", True),
        ("models/a/b/c", "models/**/*.py", True),
        ("other/a", "models/**/*.py", False),
    ],
)
def test_folders_in_which_nothing_can_match_are_not_walked(folder: str, pattern: str, expected: bool) -> None:
    assert may_match_below(folder.split("/"), pattern.split("/")) is expected


def test_files_come_in_one_order_whatever_the_file_system_says(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a.txt", "c/a.txt", "a/b/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    names = [file.name for file in find_files(str(tmp_path), include=["**/*"], key="corpus.path")]
    assert names == ["a/b/c.txt", "a/z.txt", "a.txt", "b.txt", "c/a.txt"]


def test_a_path_with_brackets_that_exists_is_no_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("words")
    (found,) = find_files(str(tmp_path / "a[1].txt"), include=["*"], key="corpus.path")
    assert found.name == "a[1].txt"


@pytest.mark.parametrize("path", ["no/such\0file", "x" * 5000, ""])
def test_a_path_that_cannot_exist_is_refused_like_a_missing_one(path: str) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.path: "):
        list(find_files(path, include=["*.jsonl"], key="corpus.path"))


def test_the_description_counts_files_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("four")
    (tmp_path / "b.txt").write_text("seven!!")
    described = describe_files(find_files(str(tmp_path), include=["*.txt"], key="corpus.path"))
    assert (described["files"], described["bytes"]) == (2, 11)
    (tmp_path / "a.txt").write_text("FOUR")
    assert describe_files(find_files(str(tmp_path), include=["*.txt"], key="corpus.path")) != described


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


CHUNKS = "chunks-0123456789abcdef"


@pytest.mark.parametrize(
    ("names", "own"),
    [
        (("r/recipe.yaml", "r/run.json", "r/a.txt", "r/deep/b.txt"), "r"),
        (("r/recipe.yaml", "r/metrics.jsonl", "r/checkpoints/last.ckpt", "r/a.txt"), "r"),
        (("x/index-0123456789abcdef/manifest.json", "x/index-0123456789abcdef/a.txt"), "x/index-0123456789abcdef"),
        ((f"x/.locks/{CHUNKS}.lock", f"x/{CHUNKS}.partial/a.txt"), f"x/{CHUNKS}.partial"),
        ((f"x/{CHUNKS}.removed/manifest.json", f"x/{CHUNKS}.removed/a.txt"), f"x/{CHUNKS}.removed"),
        ((f"x/.locks/{CHUNKS}.lock", f"x/{CHUNKS}.pieces/b/a.txt"), f"x/{CHUNKS}.pieces"),
        (("e/retroflow.json", "e/config.json", "e/a.txt"), "e"),
        (("r/recipe.yaml", "r/a.txt"), None),  # a recipe beside its text
        (("r/recipe.yaml", "r/checkpoints/my.txt"), None),
        (("r/run.json", "r/a.txt"), None),
        ((f"{CHUNKS}/a.txt",), None),  # a name alone says nothing
        (("chunks-old/manifest.json", "chunks-old/a.txt"), None),
        (("e/config.json", "e/a.txt"), None),
    ],
)
def test_our_own_runs_and_artifacts_are_passed_over_by_what_is_in_them(
    tmp_path: Path, names: tuple[str, ...], own: str | None
) -> None:
    make(tmp_path, "mine.txt", *names)
    for pattern in ("**/*", "**/*.txt"):
        own_folders: set[str] = set()
        found = find_files(str(tmp_path), include=[pattern], key="corpus.path", own_folders=own_folders)
        texts = {file.name for file in found if file.name.endswith(".txt")}
        expected = {name for name in names if name.endswith(".txt") and "/." not in name}
        assert (texts - {"mine.txt"} == set()) if own else (texts == expected | {"mine.txt"})
        assert own_folders == ({own} if own else set())
    if own:  # named by itself, it is read: who names it means it
        assert list(find_files(str(tmp_path / own), include=["**/*.txt"], key="corpus.path"))
        (tmp_path / "mine.txt").unlink()
        with pytest.raises(CorpusError, match="without retroflow's own runs and artifacts"):
            list(find_files(str(tmp_path), include=["**/*.txt"], key="corpus.path"))


def test_links_in_a_circle_hurt_only_who_asks_for_them(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl")
    (tmp_path / "loop.txt").symlink_to("pool.txt")
    (tmp_path / "pool.txt").symlink_to("loop.txt")
    (tmp_path / "nowhere").symlink_to("missing")
    (found,) = find_files(str(tmp_path / "*.jsonl"), include=[], key="corpus.path")
    assert found.name == "a.jsonl"
    with pytest.raises(CorpusError, match=r"loop\.txt: cannot be read \(Too many levels of symbolic links\)"):
        describe_files(find_files(str(tmp_path / "*.txt"), include=[], key="corpus.path"))


def test_a_pipe_a_socket_or_a_device_is_refused_instead_of_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("words")
    os.mkfifo(tmp_path / "b.txt")
    (tmp_path / "c.txt").symlink_to("/dev/null")
    for path, name, kind in (
        (tmp_path, "b.txt", "named pipe"),
        (tmp_path / "[b]*", "b.txt", "named pipe"),
        (tmp_path / "b.txt", "b.txt", "named pipe"),
        (tmp_path / "c.txt", "c.txt", "device"),
    ):
        with pytest.raises(CorpusError, match=rf"{name}: is a {kind}, not a file.*Write its content to a file"):
            list(find_files(str(path), include=["*.txt"], key="corpus.path"))
    assert [file.name for file in find_files(str(tmp_path / "a*"), include=[], key="corpus.path")] == ["a.txt"]
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("d.md")
        with pytest.raises(CorpusError, match="d.md: is a socket"):
            list(find_files(".", include=["*.md"], key="corpus.path"))
