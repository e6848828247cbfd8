"""A preview says what prepare would make, exactly where it can know, and changes nothing."""

import pytest

from retroflow.errors import CorpusError
from retroflow.pipeline import preview as module
from retroflow.pipeline.prepare import prepare
from retroflow.pipeline.preview import preview
from retroflow.store.manifest import KINDS
from tests.pipeline.recipes import small_recipe


def snapshot(folder):
    """Every file with its content and time, so that a read that writes is seen."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def quietly_prepared(recipe):
    return prepare(recipe, report=lambda stage: None)


def test_before_preparing_the_corpus_is_read_and_nothing_is_written(tmp_path):
    recipe = small_recipe(tmp_path)
    before = snapshot(tmp_path)
    found = preview(recipe)
    assert snapshot(tmp_path) == before
    assert (found.present, found.missing, found.is_estimate) == ((), KINDS, True)
    made = quietly_prepared(recipe)
    counts = {split: made.stages[0].manifest.info["splits"][split]["chunks"] for split in ("train", "valid")}
    for split, count in counts.items():
        assert found.chunks[split] == pytest.approx(count, rel=0.5)  # by the bytes of a token of real text


def test_after_preparing_everything_is_known_and_nothing_is_touched(tmp_path):
    recipe = small_recipe(tmp_path)
    made = quietly_prepared(recipe)
    before = snapshot(tmp_path)
    found = preview(recipe)
    assert snapshot(tmp_path) == before
    assert (found.present, found.missing, found.is_estimate, found.new_bytes) == (KINDS, (), False, 0)
    splits = made.stages[0].manifest.info["splits"]
    assert found.chunks == {split: splits[split]["chunks"] for split in splits}
    assert found.vocabulary_size == made.stages[0].manifest.info["vocabulary_size"]


@pytest.mark.parametrize(
    ("section", "missing"),
    [
        ({"neighbours": {"k": 3}}, KINDS[3:]),
        ({"retriever": {"name": "exact"}}, KINDS[2:]),
        ({"embedder": {"name": "lexical", "dimension": 16}}, KINDS[1:]),
        ({"data": {"chunk_length": 8}}, KINDS),
    ],
)
def test_a_change_leaves_missing_what_prepare_would_make_again(tmp_path, section, missing):
    quietly_prepared(small_recipe(tmp_path))
    changed = small_recipe(tmp_path, **section)
    assert preview(changed).missing == missing
    assert quietly_prepared(changed).built == missing


def test_new_bytes_are_about_what_prepare_adds(tmp_path):
    recipe = small_recipe(tmp_path, data={"chunk_length": 4})
    quietly_prepared(recipe)
    changed = small_recipe(tmp_path, data={"chunk_length": 4}, embedder={"name": "lexical", "dimension": 256})
    expected = preview(changed).new_bytes
    made = quietly_prepared(changed)
    added = [
        path
        for stage in made.stages
        if stage.built
        for path in stage.folder.rglob("*.*")
        if path.is_file() and "embedder" not in path.parts
    ]
    assert expected == pytest.approx(sum(path.stat().st_size for path in added), rel=0.25)


def test_a_corpus_too_large_to_read_is_said_to_be_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "READ_SECONDS", 0.0)
    found = preview(small_recipe(tmp_path))
    assert (found.chunks, found.new_bytes, found.is_estimate) == (None, None, False)
    assert "the corpus is larger than the 1 documents" in found.notes[0]


def test_without_retrieval_only_chunks_are_needed(tmp_path):
    recipe = small_recipe(tmp_path)
    assert preview(recipe, retrieval=False).missing == ("chunks",)
    quietly_prepared(recipe)
    assert preview(recipe, retrieval=False).present == ("chunks",)


def test_a_tokenizer_that_is_not_here_is_noted(tmp_path):
    found = preview(small_recipe(tmp_path, data={"tokenizer": str(tmp_path / "nowhere")}))
    assert found.vocabulary_size is None
    assert "is not on this machine" in found.notes[0]


def test_an_embedder_that_would_be_downloaded_is_noted(tmp_path):
    found = preview(small_recipe(tmp_path, embedder={"name": "bert", "model": "nobody/nothing"}))
    assert found.new_bytes is None
    assert "the embedder cannot be created yet" in found.notes[0]


def test_a_retriever_that_cannot_index_what_it_would_be_given_is_noted(tmp_path):
    retriever = {"name": "faiss", "build": {"factory": "PQ7"}}
    (note,) = preview(small_recipe(tmp_path, retriever=retriever)).notes
    assert "the retriever cannot be used as it is (retriever.build.factory is" in note


def test_an_empty_corpus_is_refused_as_by_prepare(tmp_path):
    (tmp_path / "corpus.jsonl").write_text("")
    with pytest.raises(CorpusError, match="holds no text"):
        preview(small_recipe(tmp_path))
