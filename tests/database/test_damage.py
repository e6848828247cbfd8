"""Damaged files are found when a database is opened or verified, and never change an answer silently."""

import errno
import random
import shutil
import threading
from pathlib import Path

import filelock
import pytest

import retroflow as rf
from retroflow.database.database import Database
from retroflow.errors import DamagedDataError, RetroflowError, UsageError
from tests.database.kills import killed_at
from tests.database.small import EMBEDDER, answers, build, documents_of, text_of

QUERIES = [text_of(3, 5), text_of(9, 5)]
WITHOUT_CONTENT = (".lock", "parts/.verified/")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Segments with an index of their own and without, removed and renamed documents, a tag, a record of erased ones."""
    folder = tmp_path_factory.mktemp("damage") / "db"
    with killed_at(None), pytest.MonkeyPatch.context() as patch:
        patch.setattr("retroflow.database.searching.SMALL_SEGMENT", 40)
        retriever = {"name": "faiss", "build": {"factory": "HNSW8"}}
        database = build(folder, documents_of(*range(10)), retriever=retriever)
        database.remove(["d000"])
        database.purge()
        database.add(documents_of(11))
        database.replace([{**documents_of(5)[0], "title": "Another"}])
        database.tag("kept")
        database.remove(["d001"])
    assert any(segment.index is not None for segment in database.snapshot.segments)
    return folder


def damage(folder: Path, draw: random.Random) -> list[str]:
    """Flip a byte, cut a file, or swap two; returns the names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path, other = draw.sample(files, 2)
    content, kind = path.read_bytes(), draw.choice(("flip", "cut", "swap"))
    if kind == "flip":
        place = draw.randrange(len(content))
        with path.open("r+b") as stream:
            stream.seek(place)
            stream.write(bytes([content[place] ^ (1 << draw.randrange(8))]))
    elif kind == "cut":
        with path.open("r+b") as stream:
            stream.truncate(draw.randrange(len(content)))
    else:
        if content == other.read_bytes():
            return []
        aside = path.with_name("aside")
        path.rename(aside)
        other.rename(path)
        aside.rename(other)
    names = [path, other] if kind == "swap" else [path]
    return [name.relative_to(folder).as_posix() for name in names]


def check(template: Path, folder: Path, seed: int) -> str:
    expected = answers(Database.open(template), QUERIES)
    shutil.copytree(template, folder)
    answers(Database.open(folder), QUERIES)  # from now on only changed files are hashed
    names = damage(folder, random.Random(seed))
    try:
        found = answers(Database.open(folder), QUERIES)
    except DamagedDataError:
        return "opening"
    assert found == expected, names
    try:
        is_found = bool(Database.open(folder).verify().damage)
    except DamagedDataError:
        is_found = True
    assert is_found or all(name.startswith(WITHOUT_CONTENT) for name in names), names
    return "verify" if is_found else "nothing"


def test_damage_is_found(template: Path, tmp_path: Path) -> None:
    found = [check(template, tmp_path / str(seed), seed) for seed in range(12)]
    assert "opening" in found


@pytest.mark.slow
def test_damage_of_400_files_is_found(template: Path, tmp_path: Path) -> None:
    found = [check(template, tmp_path / str(seed), seed) for seed in range(1000, 1400)]
    assert found.count("opening") > 100 and found.count("verify") > 20


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_cannot_be_written_is_one_line_and_changes_nothing(template: Path, tmp_path: Path, number) -> None:
    shutil.copytree(template, tmp_path / "db")
    database = Database.open(tmp_path / "db")
    before = database.version.number
    message = "no space is left there" if number == errno.ENOSPC else "cannot be written"
    for name in ("retroflow.store.array_file.allocate", "retroflow.store.versions.write_file"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(name, lambda *words: (_ for _ in ()).throw(OSError(number, "the reason", "the place")))
            with pytest.raises(RetroflowError, match=message) as raised:
                database.add(documents_of(30))
        assert str(raised.value).count("\n") == 0 and str(raised.value).endswith("The database is as it was before.")
        assert (database.version.number, database.verify().leftovers) == (before, [])
    assert database.add(documents_of(30)).version == before + 1


def test_a_folder_may_be_read_only_and_moved(template: Path, tmp_path: Path) -> None:
    expected = answers(Database.open(template), QUERIES)
    shutil.copytree(template, tmp_path / "elsewhere" / "moved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "retroflow.store.artifact.write_file", lambda *words: (_ for _ in ()).throw(OSError(errno.EROFS, "no"))
        )
        assert answers(Database.open(tmp_path / "elsewhere" / "moved"), QUERIES) == expected


def test_a_second_writer_is_told_who_writes(template: Path, tmp_path: Path) -> None:
    from retroflow.database.lock import writing

    shutil.copytree(template, tmp_path / "db")
    database = Database.open(tmp_path / "db")
    with writing(database.folder, "sync"), pytest.raises(RetroflowError) as raised:
        database.add(documents_of(30))
    assert "is being changed by process" in str(raised.value) and "(sync, since 2" in str(raised.value)


def test_a_writer_that_has_just_taken_the_lock_is_named_too(template: Path, tmp_path: Path) -> None:
    from retroflow.database.lock import LOCK_FILE, OWNER_FILE

    shutil.copytree(template, tmp_path / "db")
    database = Database.open(tmp_path / "db")
    owner = b'{"pid": 7, "host": "there", "verb": "add", "since": 0}'
    writes = threading.Timer(0.1, (tmp_path / "db" / OWNER_FILE).write_bytes, [owner])
    with filelock.FileLock(tmp_path / "db" / LOCK_FILE, is_singleton=False):
        writes.start()
        with pytest.raises(RetroflowError, match=r"process 7 on there \(add"):
            database.add(documents_of(30))
    writes.join()


def test_another_embedder_of_the_same_name_is_refused(template: Path, tmp_path: Path, monkeypatch) -> None:
    database = Database.open(template)
    stated = {**database.snapshot.identity.embedder.fingerprint(), "arithmetic": 2}
    monkeypatch.setattr("retroflow.embedding.lexical.LexicalEmbedder.fingerprint", lambda self: stated)
    with pytest.raises(UsageError, match='the embedder "lexical" as it is here .* is not the one'):
        Database.open(template).search("words")


def test_like_takes_what_the_embedder_has_learned(template: Path, tmp_path: Path) -> None:
    other = rf.Database.build(tmp_path / "other", documents_of(1, 2), like=template)
    mine, its = (each.snapshot.identity for each in (Database.open(template), other))
    assert mine.tokenizer_fingerprint == its.tokenizer_fingerprint and mine.sections["embedder"] == EMBEDDER
    assert mine.sections["retriever"] == its.sections["retriever"]
