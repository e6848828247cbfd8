"""prepare: what is made, what is re-used, what is refused."""

import functools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retroflow.corpus.tokenizer import load_tokenizer
from retroflow.errors import CorpusError, DamagedDataError, InvalidVectorsError, RetroflowError, UsageError
from retroflow.pipeline import chunks as chunks_stage
from retroflow.pipeline import embeddings as embeddings_stage
from retroflow.pipeline import prepare as prepare_module
from retroflow.pipeline.prepare import Prepared, describe, find_prepared, prepare
from retroflow.recipe import Recipe
from retroflow.retrieval.exact import ExactRetriever
from retroflow.store.chunk_store import ChunkStore
from retroflow.store.neighbour_table import NeighbourTable
from tests.pipeline.read_back import check_corpus_file, check_rows_against_texts, documents_of
from tests.pipeline.recipes import EXACT_FAISS, small_recipe, write_corpus

ALL = ("chunks", "embeddings", "index", "neighbours")


def quietly(recipe: Recipe) -> Prepared:
    return prepare(recipe, report=lambda stage: None)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return quietly(small_recipe(tmp_path_factory.mktemp("prepared")))


def test_the_chunks_hold_every_document_byte_for_byte(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    done = quietly(recipe)
    check_corpus_file(tmp_path / "artifacts", tmp_path / "corpus.jsonl")
    tokenizer = load_tokenizer(str(done.tokenizer))
    train, valid = ChunkStore.open(done.train_chunks), ChunkStore.open(done.valid_chunks)
    texts = [document.text for document in documents_of(tmp_path / "corpus.jsonl")]
    assert train.tokens.dtype == np.uint16 and train.chunk_length == 16
    assert train.vocabulary_size == tokenizer.vocabulary_size and train.end_of_text == tokenizer.end_of_text
    assert int(train.num_bytes.sum() + valid.num_bytes.sum()) == sum(len(text.encode()) for text in texts)
    for store in (train, valid):
        assert (np.diff(store.document_ids) >= 0).all()
        filled = np.arange(16)[None, :] >= store.lengths[:, None]
        assert (store.tokens[filled] == store.end_of_text).all()
    assert valid.document_ids[0] == train.document_ids[-1] + 1 == train.num_documents
    assert valid.document(valid.document_ids[0]).source.startswith("corpus.jsonl")
    with pytest.raises(IndexError, match="is not in this split"):
        train.document(int(valid.document_ids[0]))


def test_embeddings_and_neighbours_are_those_of_the_chunks_texts(prepared: Prepared) -> None:
    check_rows_against_texts(prepared)
    assert NeighbourTable.open(prepared.valid_neighbours).k == 2
    assert prepared.stages[3].manifest.info["recall"]["recall_at_k"] == 1.0


def test_embeddings_and_index_say_how_they_are_opened_and_are_known_without_it(prepared: Prepared) -> None:
    _, embeddings, index, _ = (stage.manifest for stage in prepared.stages)
    assert embeddings.component == {"name": "lexical", "dimension": 32}
    assert index.component == EXACT_FAISS
    # An embedder given another device makes the same vectors: its children still fit.
    moved = replace(embeddings, component={"name": "lexical", "dimension": 32, "device": "cpu"})
    assert moved.fingerprint == embeddings.fingerprint and moved.content == embeddings.content
    assert moved.render() != embeddings.render()
    without = replace(embeddings, component={})
    assert b"component" not in without.render() and without.content in without.render().decode()


def test_a_second_run_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = quietly(small_recipe(tmp_path))
    assert first.built == ALL
    for name in ("ChunkStage", "EmbeddingStage", "IndexStage", "NeighbourStage"):
        monkeypatch.setattr(getattr(prepare_module, name), "begin", lambda *given: pytest.fail("made again"))
    second = quietly(small_recipe(tmp_path))
    assert second.built == () and second.fingerprints == first.fingerprints


@pytest.mark.parametrize(
    ("change", "built"),
    [
        ({"retriever": {"name": "faiss", "build": {"factory": "HNSW8"}}}, ("index", "neighbours")),
        ({"retriever": EXACT_FAISS | {"search": {"nprobe": 3}}}, ("neighbours",)),
        ({"neighbours": {"k": 3}}, ("neighbours",)),
        ({"neighbours": {"exclude_same_document": False}}, ("neighbours",)),
        ({"neighbours": {"overfetch": 5}}, ("neighbours",)),
        ({"embedder": {"name": "lexical", "dimension": 16}}, ("embeddings", "index", "neighbours")),
        ({"data": {"chunk_length": 32}}, ALL),
        ({"data": {"vocabulary_size": 300}}, ALL),
        ({"data": {"sequence_chunks": 2, "num_workers": 1}}, ()),
    ],
)
def test_a_change_remakes_what_depends_on_it_and_nothing_else(
    prepared: Prepared, change: dict[str, Any], built: tuple[str, ...]
) -> None:
    folder = prepared.tokenizer.parents[2]
    assert quietly(small_recipe(folder, **change)).built == built


def test_one_of_many_processes_finds_what_is_prepared_and_makes_nothing(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    with pytest.raises(UsageError, match=r"the chunks of this recipe are not prepared.*\n  retroflow prepare --recipe"):
        find_prepared(recipe)
    done = quietly(recipe)
    assert find_prepared(recipe).fingerprints == done.fingerprints
    for kind in ("neighbours", "index"):  # one whose blocks are shared, and one that is made whole
        (folder,) = (tmp_path / "artifacts").glob(f"{kind}-*")
        folder.rename(tmp_path / kind)
        with pytest.raises(UsageError, match=f"the {kind} of this recipe are not prepared"):
            find_prepared(recipe)
        assert not list((tmp_path / "artifacts").glob("*.partial"))


def test_a_changed_corpus_is_prepared_anew(tmp_path: Path) -> None:
    quietly(small_recipe(tmp_path))
    write_corpus(tmp_path / "corpus.jsonl", 41)
    assert quietly(small_recipe(tmp_path)).built == ALL


def test_a_given_tokenizer_is_used_and_known_by_its_content(prepared: Prepared, tmp_path: Path) -> None:
    data = {"tokenizer": str(prepared.tokenizer), "vocabulary_size": 999}
    done = quietly(small_recipe(tmp_path, data=data))
    assert load_tokenizer(str(done.tokenizer)).fingerprint() == load_tokenizer(str(prepared.tokenizer)).fingerprint()
    assert quietly(small_recipe(tmp_path, data=data | {"vocabulary_size": 300})).built == ()


def test_any_flipped_byte_is_found_before_use(tmp_path: Path) -> None:
    done = quietly(small_recipe(tmp_path))
    files = [path for stage in done.stages for path in sorted(stage.folder.rglob("*")) if path.is_file()]
    assert len(files) > 20
    for path in files:
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        path.write_bytes(bytes(flipped))
        with pytest.raises(DamagedDataError, match="Delete the folder") as caught:
            quietly(small_recipe(tmp_path))
        assert str(path) in str(caught.value) and caught.value.exit_code == 3
        path.write_bytes(content)
    assert quietly(small_recipe(tmp_path)).built == ()


def test_an_artifact_made_from_other_bytes_of_its_parent_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    import shutil

    first = quietly(small_recipe(tmp_path))
    shutil.rmtree(first.stages[0].folder)
    # Another version of a library, say: the same inputs give other tokens.
    original = chunks_stage.train_tokenizer
    monkeypatch.setattr(chunks_stage, "train_tokenizer", lambda texts, size: original(texts, size - 50))
    with pytest.raises(
        DamagedDataError, match="another chunks-.* than the present one.*Delete the folder.*embeddings-"
    ):
        quietly(small_recipe(tmp_path))


def test_a_corpus_smaller_than_k_is_refused_with_its_numbers(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl", 12, words=10)
    with pytest.raises(CorpusError, match=r"neighbours\.k=500 needs at least 500") as caught:
        quietly(small_recipe(tmp_path, neighbours={"k": 500}))
    assert caught.value.exit_code == 2


def test_a_corpus_without_text_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    (tmp_path / "corpus.jsonl").write_text("")
    with pytest.raises(CorpusError):
        quietly(recipe)
    assert [path.name for path in (tmp_path / "artifacts").iterdir() if not path.name.startswith(".")] == []


def test_a_corpus_without_validation_text_is_refused_before_it_is_read(tmp_path: Path) -> None:
    corpus = {"name": "jsonl", "path": str(tmp_path / "missing.jsonl"), "valid_path": None, "valid_share": 0.0}
    with pytest.raises(UsageError, match=r"corpus\.valid_share is 0, .*or give corpus\.valid_path") as caught:
        quietly(small_recipe(tmp_path, corpus=corpus))
    assert caught.value.exit_code == 2
    write_corpus(tmp_path / "valid.jsonl", 8, seed=1)
    own = {"name": "jsonl", "path": str(tmp_path / "corpus.jsonl"), "valid_path": str(tmp_path / "valid.jsonl")}
    assert quietly(small_recipe(tmp_path, corpus=own | {"valid_share": 0.0})).built


@pytest.mark.parametrize(
    ("build", "message", "made"),
    [
        ({"factory": "PQ7"}, "no such index for vectors of width 32", []),
        ({"factory": "IVF100000,Flat"}, "more than the [0-9]+ vectors", ["chunks"]),
        ({"factory": "IVF4,PQ4"}, "cannot be trained on", ["chunks", "embeddings"]),  # 256 centroids: only faiss knows
    ],
)
def test_options_that_no_index_can_be_built_with_are_refused_early_and_leave_nothing_half_made(
    tmp_path: Path, build: dict[str, str], message: str, made: list[str]
) -> None:
    write_corpus(tmp_path / "corpus.jsonl", 8, words=60)
    recipe = small_recipe(tmp_path, retriever={"name": "faiss", "build": build})
    with pytest.raises(UsageError, match=message):
        quietly(recipe)
    found = (tmp_path / "artifacts").glob("[!.]*")
    assert sorted(path.name.partition("-")[0] for path in found) == made
    assert not list((tmp_path / "artifacts").glob("*.partial"))


def test_a_retriever_that_refuses_its_options_is_asked_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @functools.wraps(ExactRetriever.__init__)  # the options that it declares are read once in a process
    def refuse(self: object, **options: object) -> None:
        raise UsageError("retriever.build.num_trees is 0; allowed: a whole number of at least 1.")

    monkeypatch.setattr(ExactRetriever, "__init__", refuse)
    with pytest.raises(UsageError, match="num_trees is 0"):
        quietly(small_recipe(tmp_path, retriever={"name": "exact"}))
    assert not (tmp_path / "artifacts").exists()


def test_a_corpus_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = chunks_stage.document_blocks

    def change_then_read(documents: Any) -> Any:
        write_corpus(tmp_path / "corpus.jsonl", 50)
        return original(documents)

    monkeypatch.setattr(chunks_stage, "document_blocks", change_then_read)
    with pytest.raises(CorpusError, match="changed while it was being read"):
        quietly(small_recipe(tmp_path))


def test_a_broken_line_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    with (tmp_path / "corpus.jsonl").open("a") as stream:
        stream.write("{not json\n")
    with pytest.raises(DamagedDataError, match=r"corpus\.jsonl:41"):
        quietly(recipe)
    assert not list((tmp_path / "artifacts").glob("chunks-*"))


@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_embeddings_that_float16_cannot_hold_are_refused(value: float) -> None:
    vectors = np.ones((3, 2), np.float32)
    vectors[1, 1] = value
    with pytest.raises(
        InvalidVectorsError,
        match=r"letters \(mine 1.0\): the embedding of train chunk 11 has values that are not finite",
    ):
        embeddings_stage.half_precision(vectors, "letters (mine 1.0)", "train", 10)


def test_an_artifacts_folder_that_is_a_file_or_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RetroflowError, match="data.artifacts_folder") as caught:
        quietly(small_recipe(tmp_path, data={"artifacts_folder": str(tmp_path / "file")}))
    assert caught.value.exit_code == 1
    with pytest.raises(RetroflowError, match="data.artifacts_folder"):
        quietly(small_recipe(tmp_path, data={"artifacts_folder": str(tmp_path / "file" / "below")}))


def mount(folder: Path, options: str) -> None:
    folder.mkdir(exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("mounting a small or read-only disk needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    sizes = ("36k", "100k", "160k", "200k")
    mount(disk, f"size={sizes[0]}")
    try:
        for size in sizes:
            subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
            with pytest.raises(RetroflowError, match="no space is left") as caught:
                quietly(small_recipe(tmp_path, data={"artifacts_folder": str(disk)}))
            assert caught.value.exit_code == 1
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        on_disk = quietly(small_recipe(tmp_path, data={"artifacts_folder": str(disk)}))
        elsewhere = quietly(small_recipe(tmp_path))
        for here, there in zip(on_disk.stages, elsewhere.stages, strict=True):
            assert here.manifest.render() == there.manifest.render()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_read_only_folder_can_be_used_and_is_told_when_something_is_missing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    mount(disk, "size=50m")
    try:
        recipe = small_recipe(tmp_path, data={"artifacts_folder": str(disk)})
        quietly(recipe)
        subprocess.run(["rm", "-r", disk / ".verified"], check=True)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert quietly(recipe).built == ()
        other = small_recipe(tmp_path, data={"artifacts_folder": str(disk)}, neighbours={"k": 3})
        with pytest.raises(RetroflowError, match="Read-only file system.*data.artifacts_folder") as caught:
            quietly(other)
        assert caught.value.exit_code == 1
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


CONCURRENT = """
import sys
from pathlib import Path
from retroflow.pipeline.prepare import prepare
from tests.pipeline.recipes import small_recipe
print(",".join(prepare(small_recipe(Path(sys.argv[1]))).built))
"""


def test_two_processes_share_the_work_without_harm(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl", 300)
    command = [sys.executable, "-c", CONCURRENT, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    built = [kind for output, _ in results for kind in output.strip().split(",") if kind]
    assert sorted(built) == sorted(ALL)
    assert "waiting" in results[0][1] + results[1][1]


def test_a_stage_is_described_in_one_line_with_counts_and_folder(prepared: Prepared) -> None:
    lines = [describe(stage) for stage in prepared.stages]
    assert [line.partition(":")[0] for line in lines] == list(ALL)
    assert all("built" in line and str(prepared.stages[0].folder.parent) in line for line in lines)
    assert "train chunks" in lines[0] and "recall@2 1.000" in lines[3]


def test_what_is_missing_is_not_made_where_it_must_only_be_found(tmp_path: Path) -> None:
    recipe = replace(small_recipe(tmp_path), origins={"neighbours.k": "command line", "data.chunk_length": "x.yaml:3"})
    command = f"retroflow prepare --recipe {tmp_path}/small.yaml neighbours.k=2"
    with pytest.raises(UsageError, match=f"the chunks of this recipe are not prepared.*\n  {command}$"):
        find_prepared(recipe)
    assert not any((tmp_path / "artifacts").iterdir())
    made = quietly(recipe)
    assert find_prepared(recipe).fingerprints == made.fingerprints and find_prepared(recipe).built == ()
    with pytest.raises(UsageError, match="the neighbours of this recipe are not prepared"):
        find_prepared(small_recipe(tmp_path, neighbours={"k": 1}))


def test_without_retrieval_chunks_are_all_that_is_made(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    broken = {"name": "bert", "model": str(tmp_path / "nowhere")}  # is not even asked for
    baseline = replace(recipe, values=recipe.values | {"trainer": {"retrieval": False}, "embedder": broken})
    prepared = prepare(baseline, report=lambda stage: None)
    assert prepared.built == ("chunks",) and list(prepared.fingerprints) == ["chunks"]
    assert prepared.index is None and prepared.train_neighbours is None
    assert [path.name.split("-")[0] for path in (tmp_path / "artifacts").glob("*-*")] == ["chunks"]
    assert prepare(recipe, report=lambda stage: None).built == ("embeddings", "index", "neighbours")
