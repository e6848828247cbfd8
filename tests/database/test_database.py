"""The verbs of a database, in Python."""

import numpy as np
import pytest

import retroflow as rf
from retroflow.embedding.checked import CheckedEmbedder
from retroflow.errors import UsageError
from tests.database.small import build, documents_of, text_of


@pytest.fixture
def database(tmp_path):
    return build(tmp_path / "db", documents_of(*range(20)))


def ids(database):
    return [document.id for document in database.list()]


def test_every_verb_makes_a_version_and_readers_may_stay(database) -> None:
    old = rf.Database.open(database.folder)
    added = database.add([{"id": "new", "text": "a sentinel sentence"}])
    assert (added.version, added.added) == (2, 1)
    assert database.search("a sentinel sentence")[0].document == "new" and database.text("new") == "a sentinel sentence"
    changed = database.replace([{"id": "new", "text": "another text"}])
    assert (changed.version, changed.changed) == (3, 1) and database.text("new") == "another text"
    database.tag("kept")
    removed = database.remove(["new"])
    assert (removed.version, removed.removed) == (4, 1) and "new" not in ids(database)
    assert "new" not in ids(old) and old.version.number == 1
    assert rf.Database.open(f"{database.folder}@2").text("new") == "a sentinel sentence"
    assert rf.Database.open(f"{database.folder}@kept").version.number == 3
    assert [(each.number, each.verb) for each in database.versions()] == [
        (1, "build"), (2, "add"), (3, "replace"), (4, "remove"),
    ]  # fmt: skip


def test_sync_counts_and_embeds_only_what_has_another_text(database, monkeypatch) -> None:
    given = documents_of(*range(1, 20))
    given[3]["text"] = text_of(99)
    given.append({"id": "new", "text": text_of(100)})
    embed, embedded = CheckedEmbedder.embed, []
    monkeypatch.setattr(CheckedEmbedder, "embed", lambda self, texts: embedded.append(texts) or embed(self, texts))
    counts = database.sync(given, dry_run=True)
    assert (counts.version, counts.added, counts.changed, counts.removed, counts.same) == (1, 1, 1, 1, 18)
    assert not embedded
    done = database.sync(given)
    assert (done.added, done.changed, done.removed, done.same) == (1, 1, 1, 18)
    assert len(embedded) == 2
    assert database.sync(given).version == done.version  # nothing has changed


def test_another_title_or_source_embeds_nothing(database, monkeypatch) -> None:
    given = documents_of(*range(20))
    given[4] |= {"title": "A better title", "source": "elsewhere"}
    monkeypatch.setattr(CheckedEmbedder, "embed", None)
    assert database.sync(given).same == 20
    document = database.list()[4]
    assert (document.title, document.source) == ("A better title", "elsewhere") and len(database.list()) == 20


def test_sync_does_not_remove_more_than_half_by_accident(database) -> None:
    with pytest.raises(UsageError, match="would remove 11 of 20 documents, more than half"):
        database.sync(documents_of(*range(9)))
    assert len(ids(database)) == 20
    assert database.sync(documents_of(*range(9)), allow_mass_removal=True).removed == 11
    assert database.sync([], allow_mass_removal=True).removed == 9
    assert database.search("anything") == [] and database.add(documents_of(3)).added == 1


def test_any_history_is_the_database_that_is_built_fresh(tmp_path, database) -> None:
    """The same chunks by number, the same neighbours and scores to the bit, the same fingerprint."""
    database.remove(["d003", "d007"])
    database.add(documents_of(30, 31))
    database.replace([{"id": "d010", "text": text_of(77), "title": "Title 10"}])
    fresh_documents = [
        *(one for one in documents_of(*range(20), 30, 31) if one["id"] not in ("d003", "d007", "d010")),
        {"id": "d010", "text": text_of(77), "title": "Title 10"},
    ]
    fresh = rf.Database.build(tmp_path / "fresh", fresh_documents, like=database)
    assert fresh.fingerprint == database.fingerprint
    queries = [text_of(seed, 6) for seed in range(40)] + [database.text("d010")[:30]]
    for _ in range(2):
        for mine, other in zip(database.nearest(queries, 7), fresh.nearest(queries, 7), strict=True):
            np.testing.assert_array_equal(mine, other)
        chunks = np.arange(len(fresh))
        for name in ("tokens", "lengths", "num_bytes", "document_ids"):
            mine, other = (getattr(each.snapshot.view, name)[chunks] for each in (database, fresh))
            np.testing.assert_array_equal(mine, other)
        database.compact()


def test_a_removed_document_is_nobodys_continuation(database) -> None:
    for removed in ("d004", "d005", "d012"):
        database.remove([removed])
        for number in range(len(database.list())):
            document = database.list()[number]
            for hit in database.search(database.text(document.id)[:20], num_neighbours=3):
                assert hit.document != removed and hit.continuation in database.text(hit.document)


def test_bounds_keep_segments_few(database, monkeypatch) -> None:
    for seed in range(40, 52):
        database.add(documents_of(seed))
        assert len(database.version.segments) < 8
    for seed in range(40, 52):
        database.remove([f"d{seed:03d}"])
        assert database.version.dead_share <= 0.2
    monkeypatch.setattr("retroflow.database.commit.KEPT_SECONDS", -1.0)
    database.tag("mine", 3)
    database.add(documents_of(70))
    assert [each.number for each in database.versions()] == [3, database.version.number]
    assert rf.Database.open(f"{database.folder}@mine").version.number == 3
    stored = {path.name for path in (database.folder / "parts").iterdir()} - {".verified"}
    needed = set().union(*(each.parts for each in database.versions()))
    assert stored == needed


def test_a_version_that_is_read_is_not_deleted(database, monkeypatch) -> None:
    reader = rf.Database.open(database.folder)
    monkeypatch.setattr("retroflow.database.commit.KEPT_SECONDS", -1.0)
    database.add(documents_of(70))
    database.compact()
    assert [each.number for each in database.versions()] == [1, database.version.number]
    assert reader.text("d003") == text_of(3) and len(reader.search(text_of(3))) == 5
    reader.snapshot.close()
    database.add(documents_of(71))
    assert len(database.versions()) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda db: db.add(documents_of(3)), 'has a document "d003"; `replace`'),
        (lambda db: db.replace(documents_of(50)), 'no document "d050" to replace'),
        (lambda db: db.remove(["d0003"]), 'no document "d0003". Did you mean "d003"?'),
        (lambda db: db.remove(sources=["x*"]), 'no document from "x'),
        (lambda db: db.text("x"), 'no document "x"'),
        (lambda db: db.search(" "), "the text is blank"),
        (lambda db: db.add([*documents_of(50), *documents_of(50)]), '"d050" is there twice'),
        (lambda db: db.add([{"id": "x"}]), 'lacks "text"'),
        (lambda db: db.add([{"id": "x", "text": " "}]), '"x" has no text'),
        (lambda db: db.tag("7"), '"7" is no name'),
        (lambda db: db.tag("x", 9), "there is no version 9"),
        (lambda db: db.untag("x"), 'no tag "x"'),
        (lambda db: rf.Database.open(f"{db.folder}@9"), 'no version or tag "9"; there are 1'),
        (lambda db: rf.Database.open(f"{db.folder}@1").add(documents_of(50)), "only the newest can be changed"),
        (lambda db: rf.Database.open(db.folder.parent), "not a database"),
        (lambda db: rf.Database.open(db.folder / "no"), "there is no such folder"),
        (lambda db: build(db.folder, []), "is a database already"),
        (lambda db: build(db.folder / "parts", []), "is not empty"),
        (lambda db: build(db.folder.parent / "new", []), "without documents none can be trained"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do_and_change_nothing(database, wrong, message) -> None:
    with pytest.raises(UsageError) as raised:
        wrong(database)
    assert message in str(raised.value)
    assert (database.version.number, len(rf.Database.open(database.folder).list())) == (1, 20)


def test_a_model_keeps_the_version_that_it_was_given(database) -> None:
    from retroflow.errors import RetroflowError
    from retroflow.generation import RetrievalDatabase

    tokenizer = database.snapshot.tokenizer
    opened = RetrievalDatabase.of(database, tokenizer=tokenizer, chunk_length=8)
    query = [tokenizer.encode(text_of(3)).ids[:8].tolist()]
    database.remove(["d003"])
    with pytest.raises(RetroflowError, match="version 1 is being read by a process"):
        database.purge()
    assert opened.retrieve(query, 1).sources[0][0].document == "d003" and opened.name.startswith("db@1 (")
    del opened
    assert database.purge().version == database.version.number and len(database.versions()) == 1
