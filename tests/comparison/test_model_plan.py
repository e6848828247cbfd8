"""An exported model on a text and a database has the numbers of its run; what does not fit is one sentence."""

import json

import numpy as np
import pytest

import retroflow as rf
from retroflow.api import build_database
from retroflow.comparison.model_plan import plan_for
from retroflow.comparison.run_plan import RunPlan
from retroflow.comparison.text_chunks import cut_text
from retroflow.components import create_corpus
from retroflow.corpus.tokenizer import load_tokenizer
from retroflow.database.documents import corpus_section
from retroflow.errors import RetroflowError, UsageError
from retroflow.pipeline.lookups import own_documents
from retroflow.pretrained.retrofit_config import RetrofitConfig
from tests.pretrained.bases import make_base

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """A run, its export, a database of its training documents, and its validation documents as a text."""
    folder = tmp_path_factory.mktemp("model")
    run, corpus = trained, trained.parents[2] / "tiny" / "tiny.jsonl"
    rf.load(run).save(folder / "exported")
    build_database(folder / "db", prepared=run)
    splits = RunPlan.of(run, [], sequences=None, checkpoint=None).open(lambda: None).splits
    valid = {splits.valid_chunks.document(int(number)).id for number in np.unique(splits.valid_chunks.document_ids)}
    lines = corpus.read_text().splitlines()
    held_out = [line for line in lines if json.loads(line)["id"] in valid]
    (folder / "text.jsonl").write_text("\n".join(held_out))
    return folder, run, splits


def test_the_text_is_cut_as_prepare_cuts_it(made):
    folder, _, splits = made
    corpus = create_corpus(corpus_section(str(folder / "text.jsonl"), None))
    text = cut_text(corpus, load_tokenizer(str(splits.tokenizer)), 8)
    for name in ("tokens", "lengths", "num_bytes"):
        assert (getattr(text, name) == getattr(splits.valid_chunks, name)).all(), name
    assert text.num_documents == 4 == len(np.unique(text.document_ids))


def test_an_exported_model_has_the_numbers_of_its_run(made, tmp_path, monkeypatch):
    folder, run, _ = made
    monkeypatch.chdir(tmp_path)
    rows = ["off", "on", "in_context"]
    given = {"database": folder / "db", "rows": rows, "sequences": 9}
    found = rf.compare(folder / "exported", "trainer.precision=fp32", corpus=folder / "text.jsonl", **given)
    wanted = rf.compare(run, **given)
    for one, other in zip(found.rows, wanted.rows, strict=True):
        assert one.nats == pytest.approx(other.nats, abs=1e-5) and one.tokens == other.tokens
        assert one.bits_per_byte == pytest.approx(other.bits_per_byte, abs=1e-5)
    assert found.folder.resolve().parent == tmp_path / "comparisons" and found.to_json()["corpus"]["name"] == "jsonl"


def test_a_base_reads_a_database_and_never_the_text_s_own_document(made, tmp_path, monkeypatch):
    folder, run, splits = made
    monkeypatch.chdir(tmp_path)
    base = make_base("llama", vocab_size=load_tokenizer(str(splits.tokenizer)).vocabulary_size)
    base.save_pretrained(tmp_path / "base")
    load_tokenizer(str(splits.tokenizer)).save(tmp_path / "base")
    words = ["trainer.precision=fp32", "neighbours.step=4", "model.lookups_read=2", "data.sequence_chunks=4"]
    corpus, rows = run.parents[2] / "tiny" / "tiny.jsonl", ["off", "on", "shuffled"]
    found = rf.compare(tmp_path / "base", *words, database=folder / "db", corpus=corpus, rows=rows, sequences=4)
    assert [row.name for row in found.rows] == rows and found.to_json()["text"]["sequences"] == 4
    assert found.rows[1].gain != 0.0
    plan = plan_for(str(tmp_path / "base"), words, database=str(folder / "db"), corpus=str(corpus), sequences="4")
    subject = plan.open(lambda: None)
    text, database = subject.splits.valid_chunks, subject.splits.database
    ids = subject.splits.validation_neighbours
    looked_up = np.isin(np.arange(len(text)), subject.chunks)
    assert (ids[looked_up] >= 0).any() and (ids[~looked_up] < 0).all()
    for row in np.flatnonzero(looked_up):
        own = text.document(int(text.document_ids[row])).id
        found_in = {database.document(int(database.document_ids[one])).id for one in ids[row] if one >= 0}
        assert own not in found_in
    for row, sequence in enumerate(subject.sequences):  # frequent lookups search further, too
        own = {text.document(int(number)).id for number in own_documents(subject.splits, np.array([sequence]))[0]}
        ids = subject.found.ids[row, : (min(4, len(text) - 4 * sequence) - 1) * 2 + 1]
        read = {database.document(int(database.document_ids[one])).id for one in ids.ravel()}
        assert (ids >= 0).all() and read.isdisjoint(own)
    assert isinstance(subject.model.options, RetrofitConfig) and subject.step == 4


def test_curves_of_an_exported_model(made, tmp_path, monkeypatch):
    for library in ("bm25s", "faiss", "hnswlib", "scann"):
        pytest.importorskip(library)
    folder, _, splits = made
    monkeypatch.chdir(tmp_path)
    given = {"corpus": folder / "text.jsonl", "sequences": 4}
    found = rf.curve(folder / "exported", over="retriever", database=folder / "db", **given)
    recall = {point["label"]: point["recall"] for point in found.points}
    assert list(recall) == ["exact", "faiss", "scann", "hnsw", "bm25", "random"] and recall["exact"] == 1.0
    assert all(recall[name] > 0.8 for name in ("faiss", "scann", "hnsw")) and recall["random"] < 0.1
    for over, count in (("k", 6), ("size", 3), ("step", 3), ("alpha", 8)):
        assert len(rf.curve(folder / "exported", over=over, database=folder / "db", **given).points) == count
    assert {file.stem for file in (tmp_path / "curves").glob("*.json")} == {"retriever", "k", "size", "step", "alpha"}
    corpus, tokenizer = made[1].parents[2] / "tiny" / "tiny.jsonl", str(splits.tokenizer)
    texts = rf.Database.build(tmp_path / "texts", corpus, tokenizer=tokenizer, chunk_length=8, retriever="bm25")
    found = rf.curve(folder / "exported", over="retriever", values=["bm25", "random"], database=texts.folder, **given)
    assert [point["recall"] for point in found.points] == [None, None]  # without vectors it is not known
    with pytest.raises(UsageError, match="it has no vectors, which this retriever or its recall needs"):
        rf.curve(folder / "exported", over="retriever", values=["exact"], database=texts.folder, **given)


def test_what_is_missing_or_does_not_fit_is_one_sentence(made, tmp_path):
    folder, run, _ = made
    exported, database, text = folder / "exported", folder / "db", folder / "text.jsonl"
    for model, words, given, message in (
        (exported, [], {"database": database}, "^corpus: .* has no validation text of its own; give a text, such as"),
        (exported, [], {"corpus": text}, "^database: .* has none of its own; give one that `retroflow db build` made"),
        (run, [], {"corpus": text}, "^corpus='.*': a run is compared on its own validation text; leave it out"),
        (run.parent, [], {"corpus": text, "database": database}, "not a run folder .*; did you mean"),
        (tmp_path / "no", [], {"corpus": text, "database": database}, "is no run, .*model.base: there is no folder"),
        (exported, [], {"corpus": tmp_path / "no", "database": database}, "^corpus.path: .*does not exist"),
        (exported, ["data.chunk_length=16"], {"corpus": text, "database": database}, "holds chunks of 8 tokens, and "),
        (exported, ["model.rank=3"], {"corpus": text, "database": database}, "model is not a known key"),
        (exported, [], {"corpus": text, "database": database, "checkpoint": 3}, "is no run and has none; leave it out"),
        (exported, [], {"corpus": text, "database": tmp_path}, "not a database"),
    ):
        with pytest.raises(RetroflowError, match=message):
            rf.compare(model, *words, **given)
