"""Random histories against a dictionary and brute force; readers beside a writer and a compactor."""

import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import retroflow as rf
from retroflow.database.database import Database
from retroflow.errors import RetroflowError
from tests.database.kills import killed_at
from tests.database.small import answers, brute_force, build, documents_of, text_of

QUERIES = [text_of(seed, 5) for seed in (3, 9, 31)]


def check_history(folder: Path, seed: int, steps: int) -> None:
    draw = random.Random(seed)
    texts = {one["id"]: one["text"] for one in documents_of(*range(8))}
    database = build(folder / "db", [{"id": id, "text": text} for id, text in texts.items()])
    identity, tagged = database.snapshot.identity, {}
    for step in range(steps):
        verb = draw.choice(("add", "add", "remove", "replace", "sync", "compact", "tag", "purge"))
        some = draw.sample(sorted(texts), min(len(texts), draw.randint(1, 3)))
        new = {f"n{seed}-{step}-{number}": text_of(draw.randrange(60), draw.randint(1, 40)) for number in range(2)}
        if verb == "add":
            database.add([{"id": id, "text": text} for id, text in new.items()])
            texts |= new
        elif verb == "remove":
            database.remove(some)
            texts = {id: text for id, text in texts.items() if id not in some}
        elif verb == "replace":
            changed = {id: text_of(draw.randrange(60)) for id in some}
            database.replace([{"id": id, "text": text} for id, text in changed.items()])
            texts |= changed
        elif verb == "sync":
            texts = {id: text for id, text in texts.items() if id not in some[:1]} | new
            database.sync([{"id": id, "text": text} for id, text in texts.items()], allow_mass_removal=True)
        elif verb == "compact":
            database.compact()
        elif verb == "tag":
            database.tag(f"t{step}")
            tagged[f"t{step}"] = dict(texts)
        else:
            for name in tagged:
                database.untag(name)
            tagged = {}
            database.purge()
            assert len(database.versions()) == 1
        expected = brute_force(identity, texts, QUERIES)
        assert answers(database, QUERIES) == expected, (seed, step, verb)
    assert {one.id: database.text(one.id) for one in database.list()} == texts
    for name, then in tagged.items():
        assert answers(Database.open(f"{database.folder}@{name}"), QUERIES) == brute_force(identity, then, QUERIES)
    fresh = rf.Database.build(folder / "fresh", [{"id": id, "text": text} for id, text in texts.items()], like=database)
    assert fresh.fingerprint == database.fingerprint
    assert database.verify().damage == []


def test_histories(tmp_path: Path) -> None:
    with killed_at(None):
        for seed in range(2):
            check_history(tmp_path / str(seed), seed, 10)


@pytest.mark.slow
def test_100_histories(tmp_path: Path) -> None:
    with killed_at(None):
        for seed in range(100, 200):
            check_history(tmp_path / str(seed), seed, 14)


@pytest.mark.parametrize(
    "retriever",
    [
        {"name": "faiss", "build": {"factory": "HNSW16"}},
        {"name": "faiss", "build": {"factory": "Flat"}},
        {"name": "bm25"},
    ],
)
def test_other_retrievers_live_like_exact(tmp_path: Path, monkeypatch, retriever) -> None:
    """Indexes of segments, exact ones without files, and one over all chunks; removed documents are never found."""
    pytest.importorskip("faiss" if retriever["name"] == "faiss" else "bm25s")
    monkeypatch.setattr("retroflow.database.searching.SMALL_SEGMENT", 30)
    with killed_at(None):
        database = build(tmp_path / "db", documents_of(*range(30)), retriever=retriever)
        database.remove(["d003", "d007"])
        database.add(documents_of(*range(30, 40)))
        database.replace([{"id": "d010", "text": text_of(77), "title": "Title 10"}])
        fresh_documents = [one for one in documents_of(*range(40)) if one["id"] not in ("d003", "d007", "d010")]
        fresh_documents.append({"id": "d010", "text": text_of(77), "title": "Title 10"})
        fresh = rf.Database.build(tmp_path / "fresh", fresh_documents, like=database)
    queries = [text_of(seed, 6) for seed in range(60)]
    mine, other = database.nearest(queries, 4), fresh.nearest(queries, 4)
    if retriever == {"name": "faiss", "build": {"factory": "HNSW16"}}:
        shared = [len(np.intersect1d(*pair)) for pair in zip(mine.ids, other.ids, strict=True)]
        assert sum(shared) >= 0.98 * mine.ids.size
    else:
        np.testing.assert_array_equal(mine.ids, other.ids)
        np.testing.assert_array_equal(mine.scores, other.scores)
    found = {
        database.snapshot.view.document(int(one)).id for one in database.snapshot.view.document_ids[mine.ids.ravel()]
    }
    assert not {"d003", "d007"} & found and len(found) > 20
    excluded = np.array([database.snapshot.view.number("d012")] * len(queries))
    from retroflow.database.reading import queries_of

    without = database.snapshot.search.search(queries_of(database.snapshot, queries), 4, excluded)
    assert (without.ids >= 0).all() and not np.isin(database.snapshot.view.document_ids[without.ids], excluded).any()


def check_concurrency(folder: Path, readers: int, rounds: int) -> None:
    """Every answer is brute force of exactly one version, whoever writes and compacts meanwhile."""
    database = build(folder, documents_of(*range(10)))
    texts = {one["id"]: one["text"] for one in documents_of(*range(10))}
    identity, done, faults = database.snapshot.identity, threading.Event(), []
    expected = {database.fingerprint: brute_force(identity, texts, QUERIES)}

    def read() -> None:
        while not done.is_set():
            reader = Database.open(folder)
            found = answers(reader, QUERIES)
            time.sleep(0.01)
            if found != answers(reader, QUERIES) or reader.fingerprint not in expected:
                faults.append(reader.version)
            elif found != expected[reader.fingerprint]:
                faults.append(found)

    def compact() -> None:
        while not done.is_set():
            try:
                Database.open(folder).compact()
                Database.open(folder).purge()
            except RetroflowError as error:
                if "is being changed" not in str(error) and "is being read" not in str(error):
                    faults.append(error)
            time.sleep(0.02)

    threads = [threading.Thread(target=read) for _ in range(readers)] + [threading.Thread(target=compact)]
    for thread in threads:
        thread.start()
    try:
        for seed in range(20, 20 + rounds):
            new, gone = documents_of(seed), sorted(texts)[seed % len(texts)]
            texts = {id: text for id, text in texts.items() if id != gone} | {one["id"]: one["text"] for one in new}
            given = [{"id": id, "text": text, "title": f"Title {int(id[1:])}"} for id, text in texts.items()]
            scratch = rf.Database.build(folder.with_name(f"expected-{seed}"), given, like=database)
            expected[scratch.fingerprint] = brute_force(identity, texts, QUERIES)
            while True:
                try:
                    database.sync(given)
                    break
                except RetroflowError as error:
                    if "is being changed" not in str(error):
                        raise
                    time.sleep(0.01)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not faults, faults[0]


def test_readers_see_one_version_beside_a_writer_and_a_compactor(tmp_path: Path) -> None:
    with killed_at(None):
        check_concurrency(tmp_path / "db", 2, 4)


@pytest.mark.slow
def test_8_readers_a_writer_and_a_compactor(tmp_path: Path) -> None:
    with killed_at(None):
        check_concurrency(tmp_path / "db", 8, 50)
