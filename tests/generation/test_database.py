"""A database is opened from its folder alone, searched by the path its keys took, and refused where it does not fit."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from retroflow.corpus.tokenizer import load_tokenizer, train_tokenizer
from retroflow.embedding.lexical import LexicalEmbedder
from retroflow.errors import DamagedDataError, GenerationError, UsageError
from retroflow.generation import RetrievalDatabase
from retroflow.pipeline.prepare import Prepared, prepare
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.store.chunk_store import ChunkStore
from retroflow.store.embedding_store import EmbeddingStore
from retroflow.store.neighbour_table import NeighbourTable
from retroflow.store.sealed_json import render_sealed
from tests.pipeline.read_back import documents_of
from tests.pipeline.recipes import small_recipe

CHUNK = 16


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(small_recipe(tmp_path_factory.mktemp("database")), report=lambda stage: None)


def copy(prepared: Prepared, folder: Path) -> Path:
    """The three artifacts of the database, moved somewhere else; returns the index folder."""
    folder.mkdir()
    for stage in prepared.stages[:3]:
        shutil.copytree(stage.folder, folder / stage.folder.name)
    return folder / prepared.stages[2].folder.name


@pytest.fixture
def index(prepared: Prepared, tmp_path: Path) -> Path:
    return copy(prepared, tmp_path / "elsewhere")


def test_a_link_to_an_index_is_that_index_and_nothing_is_left_beside_the_link(
    prepared: Prepared, index: Path, tmp_path: Path
) -> None:
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "database"
    link.symlink_to(index)
    assert open_database(link, prepared).fingerprint == open_database(index, prepared).fingerprint
    assert list((tmp_path / "links").iterdir()) == [link]


def test_another_artifact_is_an_error_of_the_command_line(prepared: Prepared) -> None:
    with pytest.raises(UsageError, match="holds chunks, not index") as raised:
        open_database(prepared.stages[0].folder, prepared)
    assert raised.value.exit_code == 2


def open_database(index: Path, prepared: Prepared, **changes):
    given = {"tokenizer": load_tokenizer(str(prepared.tokenizer)), "chunk_length": CHUNK} | changes
    return RetrievalDatabase.open(index, **given)


def text_tokens(store: ChunkStore, row: int) -> list[int]:
    return store.tokens[row][: store.lengths[row]].tolist()


def test_the_text_of_a_stored_chunk_finds_that_chunk_at_distance_zero(prepared: Prepared, index: Path) -> None:
    """Guarantee 10: the query takes the path of the keys, down to their rounding."""
    database = open_database(index, prepared)
    store = ChunkStore.open(prepared.train_chunks)
    rows = list(range(0, len(store), 7))
    found = database.retrieve([text_tokens(store, row) for row in rows], 2)
    keys = EmbeddingStore.open(prepared.train_embeddings)[:].astype(np.float32)
    for place, row in enumerate(rows):
        first = found.sources[place][0]
        assert first.score == pytest.approx(0, abs=1e-6)
        np.testing.assert_array_equal(keys[first.chunk], keys[row])
    assert database.metric == "l2" and len(database) == len(store)


def test_queries_are_the_keys_bit_for_bit(prepared: Prepared, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database, store = open_database(index, prepared), ChunkStore.open(prepared.train_chunks)
    searched = []
    search = CheckedRetriever.search
    monkeypatch.setattr(
        CheckedRetriever, "search", lambda self, queries, k: searched.append(queries) or search(self, queries, k)
    )
    database.retrieve([text_tokens(store, row) for row in range(len(store))], 1)
    keys = EmbeddingStore.open(prepared.train_embeddings)[:].astype(np.float32)
    np.testing.assert_array_equal(np.concatenate([queries.vectors for queries in searched]), keys)


def test_live_retrieval_finds_what_the_neighbour_table_holds(prepared: Prepared, index: Path) -> None:
    """Validation chunks have no document of their own in the database: prepare and generation must agree on them."""
    database, valid = open_database(index, prepared), ChunkStore.open(prepared.valid_chunks)
    table = NeighbourTable.open(prepared.valid_neighbours)
    found = database.retrieve([text_tokens(valid, row) for row in range(len(valid))], table.k)
    ids = np.array([[source.chunk for source in sources] for sources in found.sources])
    scores = np.array([[source.score for source in sources] for sources in found.sources])
    np.testing.assert_allclose(scores, table.scores, atol=1e-5)
    assert (ids == table.ids).mean() > 0.99  # equal scores may come in any order


def test_what_is_read_is_the_chunk_and_its_continuation_within_the_document(prepared: Prepared, index: Path) -> None:
    database, store = open_database(index, prepared), ChunkStore.open(prepared.train_chunks)
    tokenizer = load_tokenizer(str(prepared.tokenizer))
    corpus = prepared.tokenizer.parents[2] / "corpus.jsonl"
    documents = {document.id: document for document in documents_of(corpus)}
    found = database.retrieve([text_tokens(store, row) for row in range(len(store))], 3)
    assert found.tokens.shape == found.mask.shape == (len(store), 3, 2 * CHUNK) and found.tokens.dtype == np.int64
    ends = 0
    for row, sources in enumerate(found.sources):
        for place, source in enumerate(sources):
            continues = (
                source.chunk + 1 < len(store)
                and store.document_ids[source.chunk + 1] == store.document_ids[source.chunk]
            )
            ends += not continues
            parts = [text_tokens(store, source.chunk), text_tokens(store, source.chunk + 1) if continues else []]
            for part, half in zip(parts, (slice(0, CHUNK), slice(CHUNK, None)), strict=True):
                mask = found.mask[row, place, half]
                assert found.tokens[row, place, half][mask].tolist() == part and mask[: len(part)].all()
            assert source.text == tokenizer.decode(parts[0] + parts[1])
            document = documents[source.document]
            assert source.text in document.text
            assert (source.title, source.source) == (document.title, document.source)
    assert ends > 10


def test_end_of_text_is_no_text_and_finds_nothing(prepared: Prepared, index: Path) -> None:
    database, store = open_database(index, prepared), ChunkStore.open(prepared.train_chunks)
    end, chunk = store.end_of_text, text_tokens(store, 0)
    found = database.retrieve([[end, end], [*chunk[:9], end, end], chunk[:9]], 2)
    assert found.sources[0] == () and not found.mask[0].any() and (found.tokens[0] == end).all()
    assert found.sources[1] == found.sources[2] != ()


def test_more_neighbours_than_chunks_are_masked(prepared: Prepared, index: Path) -> None:
    database = open_database(index, prepared)
    found = database.retrieve([[1, 2, 3]], len(database) + 5)
    assert len(found.sources[0]) == len(database) and not found.mask[0, len(database) :].any()


@pytest.mark.parametrize("retriever", [{"name": "exact"}, {"name": "faiss", "build": {"factory": "HNSW8"}}])
def test_any_retriever_is_opened_from_the_index_alone(tmp_path: Path, retriever) -> None:
    done = prepare(small_recipe(tmp_path, retriever=retriever), report=lambda stage: None)
    database = open_database(done.stages[2].folder, done)
    store = ChunkStore.open(done.train_chunks)
    assert database.retrieve([text_tokens(store, 3)], 1).sources[0][0].score == pytest.approx(0, abs=1e-6)


def test_a_folder_with_one_index_and_a_run_folder_are_databases_too(
    prepared: Prepared, index: Path, tmp_path: Path
) -> None:
    assert open_database(index.parent, prepared).fingerprint == prepared.fingerprints["index"]
    run = write_run(tmp_path / "run", index.parent, prepared)
    assert open_database(run, prepared).fingerprint == prepared.fingerprints["index"]


def write_run(folder: Path, artifacts: Path, prepared: Prepared, **changes) -> Path:
    values = small_recipe(prepared.tokenizer.parents[2]).values
    values = values | {"data": values["data"] | {"artifacts_folder": str(artifacts)}} | changes
    identity = {"recipe": "", "values": values, "fingerprints": prepared.fingerprints}
    folder.mkdir()
    (folder / "run.json").write_text(render_sealed({"identity": identity}, what="run.json"))
    return folder


def test_another_tokenizer_is_refused_and_the_way_to_the_right_one_is_told(
    prepared: Prepared, index: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    train_tokenizer(["other text"], 300).save(folder)
    with pytest.raises(GenerationError, match=r"made with another tokenizer \(fingerprint \w{16}\)") as caught:
        open_database(index, prepared, tokenizer=load_tokenizer(str(folder)))
    assert f"data.tokenizer={folder} data.chunk_length={CHUNK}" in str(caught.value)


def test_another_chunk_length_is_refused(prepared: Prepared, index: Path) -> None:
    with pytest.raises(GenerationError, match="holds chunks of 16 tokens, and the model reads chunks of 8"):
        open_database(index, prepared, chunk_length=8)


def test_another_embedder_is_refused(prepared: Prepared, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee 10: a database knows its embedder by fingerprint."""
    monkeypatch.setattr(LexicalEmbedder, "fingerprint", lambda self: {"embedder": "lexical", "arithmetic": 2})
    with pytest.raises(GenerationError, match="is not the one that made the keys of"):
        open_database(index, prepared)


def test_the_state_that_the_embedder_learned_is_loaded(prepared: Prepared, index: Path) -> None:
    """Without its document frequencies a lexical embedder weighs words differently."""
    store = ChunkStore.open(prepared.train_chunks)
    fresh = LexicalEmbedder(dimension=32)
    text = load_tokenizer(str(prepared.tokenizer)).decode(text_tokens(store, 0))
    key = EmbeddingStore.open(prepared.train_embeddings)[0:1]
    assert not np.array_equal(fresh.embed([text]).astype(np.float16), key)
    assert open_database(index, prepared).retrieve([text_tokens(store, 0)], 1).sources[0][0].score == pytest.approx(
        0, abs=1e-6
    )


def test_a_missing_parent_and_a_changed_byte_are_told(prepared: Prepared, index: Path) -> None:
    chunks = index.parent / prepared.stages[0].folder.name
    moved = chunks.rename(chunks.with_name("away"))
    with pytest.raises(GenerationError, match=f'was made from "{chunks.name}", which is not beside it'):
        open_database(index, prepared)
    moved.rename(chunks)
    file = next((index / "retriever").rglob("*.json"))
    file.write_bytes(file.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(DamagedDataError, match="SHA-256"):
        open_database(index, prepared)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", 'there is no folder ".*nowhere"; give a database'),
        (lambda folder: folder, "holds no database; give one index folder"),
        (
            lambda folder: [(folder / name).mkdir() for name in ("index-a", "index-b")] and folder,
            "holds 2 databases: index-a, index-b",
        ),
    ],
)
def test_a_folder_that_is_no_database_is_told(prepared: Prepared, tmp_path: Path, make, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        open_database(make(tmp_path), prepared)


def test_chunks_are_not_an_index(prepared: Prepared) -> None:
    with pytest.raises(Exception, match="holds chunks, not index"):
        open_database(prepared.stages[0].folder, prepared)


def test_runs_that_cannot_be_read_are_told(prepared: Prepared, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tmp_path / "gone", prepared)
    with pytest.raises(
        GenerationError, match=r"(?s)index-\w+, which it was trained with.*/gone\n.*prepare --recipe .*recipe.yaml"
    ):
        open_database(run, prepared)
    (run / "run.json").write_text("{}")
    with pytest.raises(DamagedDataError, match=r"run\.json.*its SHA-256 is not in it"):
        open_database(run, prepared)
    (run / "run.json").write_text(render_sealed({}, what="run.json"))
    with pytest.raises(DamagedDataError, match=r"run\.json.*not what fit writes"):
        open_database(run, prepared)
