"""Killed at any write of any verb, and again while recovering, a database opens as before or after."""

import gc
import shutil
from pathlib import Path

import pytest

from retroflow.database.database import Database
from retroflow.errors import UsageError
from tests.database.kills import count, kill, killed_at
from tests.database.small import answers, build, documents_of, text_of

QUERIES = [text_of(3, 5), text_of(9, 5)]
CHANGED = [
    *documents_of(*range(1, 8)),
    {**documents_of(8)[0], "title": "Another"},
    {"id": "d009", "text": text_of(90)},
    *documents_of(20),
]
VERBS = {
    "add": lambda db: db.add(documents_of(30)),
    "remove": lambda db: db.remove(["d001", "d002", "d003"]),
    "replace": lambda db: db.replace([{"id": "d004", "text": text_of(91)}]),
    "sync": lambda db: db.sync(CHANGED),
    "compact": lambda db: db.compact(),
    "purge": lambda db: db.purge(),
    "tag": lambda db: db.tag("name", 1),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three segments, one with removed documents, and older versions."""
    folder = tmp_path_factory.mktemp("kills") / "db"
    with killed_at(None):
        database = build(folder, documents_of(*range(10)))
        database.add(documents_of(11))
        database.remove(["d000"])
        database.add(documents_of(12))
    assert len(database.version.segments) == 3
    return folder


def state(folder: Path):
    database = Database.open(folder)
    return database.fingerprint, answers(database, QUERIES), dict(database.tags), [one.id for one in database.list()]


def check(template: Path, folder: Path, verb: str, points: list[tuple[int, int]], number: int) -> None:
    act = VERBS[verb]
    shutil.copytree(template, folder / "whole")
    act(Database.open(folder / "whole"))
    before, after = state(template), state(folder / "whole")
    for first, second in points:
        broken = folder / f"{first}-{second}"
        shutil.copytree(template, broken)
        assert kill(lambda: act(Database.open(broken)), first), "it was not killed"  # noqa: B023
        assert state(broken) in (before, after)
        was_after = state(broken) == after and before != after
        for point in (second, None):
            gc.collect()
            try:
                kill(lambda: act(Database.open(broken)), point or 1 << 30)  # noqa: B023
            except UsageError:  # added or removed already
                assert verb in ("add", "remove")
            assert state(broken) in ((after,) if was_after else (before, after))
        gc.collect()
        assert state(broken) == after, (verb, first, second)
        with killed_at(None):
            Database.open(broken).tag("end")
        found = Database.open(broken).verify()
        assert found.damage == found.leftovers == []
        shutil.rmtree(broken)
    assert number


@pytest.mark.parametrize("verb", VERBS)
def test_killed_at_some_writes(template: Path, tmp_path: Path, verb: str) -> None:
    shutil.copytree(template, tmp_path / "counted")
    number = count(lambda: VERBS[verb](Database.open(tmp_path / "counted")))
    point = max(1, number * (1 + sorted(VERBS).index(verb)) // (len(VERBS) + 1))
    check(template, tmp_path, verb, [(point, max(1, point // 2))], number)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_killed_at_every_write(template: Path, tmp_path: Path, verb: str) -> None:
    shutil.copytree(template, tmp_path / "counted")
    number = count(lambda: VERBS[verb](Database.open(tmp_path / "counted")))
    check(template, tmp_path, verb, [(point, 1 + point * 7 % number) for point in range(1, number + 1)], number)


def test_a_building_that_was_killed_is_begun_again(tmp_path: Path) -> None:
    def make(folder: Path):
        return lambda: build(folder, documents_of(*range(4)))

    number = count(make(tmp_path / "whole"))
    expected = [one.id for one in Database.open(tmp_path / "whole").list()]
    for point in range(2, number, 16):
        folder = tmp_path / str(point)
        if kill(make(folder), point):
            if not (folder / "current.json").exists():
                with pytest.raises(UsageError, match=r"there is no such folder|not a database|did not end"):
                    Database.open(folder)
                gc.collect()
                with killed_at(None):
                    make(folder)()
            assert [one.id for one in Database.open(folder).list()] == expected
            gc.collect()
            Database.open(folder).tag("end")
            assert Database.open(folder).verify().leftovers == []
