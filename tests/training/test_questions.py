"""`data.format: qa`: a question ends its chunk, its answer alone is predicted, and passages are read for it."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import retroflow as rf
from retroflow.comparison.run_plan import RunPlan
from retroflow.corpus.chunking import chunk_question
from retroflow.corpus.questions import Question
from retroflow.corpus.tokenizer import Encoded
from retroflow.data.batch import NOT_PREDICTED
from retroflow.database.database import Database
from retroflow.errors import CorpusError, UsageError
from retroflow.evaluation.attribution import shuffled
from retroflow.testing.tiny_corpus import tiny_texts
from retroflow.training.evaluate import run_to_measure

RECIPE = """recipe_version: 1
database: {database}
corpus: {{name: questions, path: {questions}, valid_share: 0.3}}
neighbours: {{k: 2, step: 4}}
data: {{format: qa, sequence_chunks: 2, artifacts_folder: {folder}/artifacts}}
model: {{name: retro, width: 16, num_layers: 2, num_heads: 2, head_width: 8, cca_layers: [2], encoder_width: 8,
  encoder_layers: 1, encoder_heads: 1}}
optimizer: {{learning_rate: 0.01, warmup_steps: 2}}
trainer: {{max_steps: 3, batch_size: 4, device: cpu, precision: fp32, validation_batches: 1, runs_folder: {folder}/runs}}
"""


@pytest.fixture(scope="module")
def facts():
    return [fact for text in tiny_texts(12) for fact in text.splitlines()[1:5]]


@pytest.fixture(scope="module")
def run(tmp_path_factory, facts):
    folder = tmp_path_factory.mktemp("qa")
    documents = [
        {"id": f"d{place}", "title": f"Notes {place}", "text": text} for place, text in enumerate(tiny_texts(12))
    ]
    embedder = {"name": "lexical", "dimension": 32}
    Database.build(folder / "db", documents, embedder=embedder, retriever="exact", chunk_length=32, vocabulary_size=400)
    lines = [
        {"id": f"q{place}", "question": f"Where does {fact.split()[0]} keep lamps?", "answer": [fact.split()[-1][:-1]]}
        for place, fact in enumerate(facts)
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    recipe = folder / "asked.yaml"
    recipe.write_text(RECIPE.format(questions=folder / "questions.jsonl", database=folder / "db", folder=folder))
    return rf.fit(rf.load_recipe(recipe))


@pytest.fixture(scope="module")
def job(run):
    return run_to_measure(run.folder).job()


def encoded(count):
    return Encoded(np.arange(1, count + 1), np.arange(count) * 2, 2 * count)


@pytest.mark.parametrize(("question", "answer"), [(3, 2), (6, 6), (1, 5), (9, 8)])
def test_a_question_ends_its_chunk_and_its_answer_begins_the_next(question, answer):
    m = 6
    tokens, lengths, num_bytes = chunk_question(encoded(question), encoded(answer), chunk_length=m, end_of_text=0)
    kept, predicted = min(question, m), min(answer, m - 1)
    assert tokens[0].tolist() == [0] * (m - kept) + list(range(question - kept + 1, question + 1))
    assert tokens[1].tolist() == list(range(1, predicted + 1)) + [0] * (m - predicted)
    assert lengths.tolist() == [m, predicted] and num_bytes.tolist() == [0, 2 * predicted]


def test_only_the_answer_and_its_end_are_predicted(job, run):
    dataset = job.splits.training(retrieval=True)
    batch = dataset.assemble([0, 2, 4], 2)
    tokenizer = rf.load(run, device="cpu", retrieval=False).tokenizer
    m, end = 32, tokenizer.end_of_text
    for row, place in enumerate((0, 2, 4)):
        prompt = [token for token in dataset.chunks.tokens[place].tolist() if token != end]
        answer = [token for token in dataset.chunks.tokens[place + 1].tolist() if token != end]
        assert tokenizer.decode(prompt).endswith("\nanswer:") and tokenizer.decode(answer).startswith(" ")
        predicted = batch.targets[row] != NOT_PREDICTED
        assert predicted.nonzero().flatten().tolist() == list(range(m - 1, m + len(answer)))
        assert batch.targets[row][predicted].tolist() == [*answer, end]
        assert batch.padding[row] == m - len(prompt)


def test_passages_have_titles_and_are_read_for_the_answer_only(job, run):
    batch = job.splits.training(retrieval=True).assemble([0, 2], 2)
    tokenizer = rf.load(run, device="cpu", retrieval=False).tokenizer
    assert batch.retrieved_mask[:, 0].any() and not batch.retrieved_mask[:, 1].any()
    for row in range(2):
        text = tokenizer.decode(batch.retrieved[row, 0, 0][batch.retrieved_mask[row, 0, 0]].tolist())
        assert text.startswith("title: Notes ") and ", source: " in text
    model = job.module.model.eval()
    with torch.no_grad():
        on = model.loss(batch.tokens, batch.targets, batch.retrieved, batch.retrieved_mask, batch.padding)
        off = model.loss(batch.tokens, batch.targets, None, None, batch.padding)
        logits = model(batch.tokens, batch.retrieved, batch.retrieved_mask, padding=batch.padding)
    nats = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=NOT_PREDICTED, reduction="none")
    assert torch.allclose(on, nats.view(2, -1).sum(1), atol=1e-5) and not torch.allclose(on, off)


def test_every_sequence_of_every_epoch_is_a_question(job):
    from retroflow.data import StepBatches

    count = len(job.splits.train_chunks)
    batches = StepBatches(num_chunks=count, sequence_chunks=2, batch_size=5, seed=3, shifts=False)
    starts = np.concatenate([batches.starts(step) for step in range(count)])
    assert (starts % 2 == 0).all() and set(starts.tolist()) == set(range(0, count, 2))


def test_the_run_is_trained_reported_and_answers_with_its_passages(run, facts, tmp_path):
    validation = run.report["validation"]
    assert run.is_finished and {"on", "off", "shuffled", "random"} <= set(validation)
    lm = rf.load(run, device="cpu")
    assert lm.database is not None and "db" in lm.database.name
    asked = [
        {"question": f"Where does {fact.split()[0]} keep lamps?", "answer": fact.split()[-1]} for fact in facts[:4]
    ]
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, asked)))
    (found,) = rf.evaluate_tasks(run, ["qa"], task_data=tmp_path, output=tmp_path / "results")
    assert set(found.result.predictions[0]["ways"]) == {"off", "on", "random"}


def test_the_model_reads_in_a_task_what_it_is_trained_on(run, job, tmp_path):
    from retroflow.generation import GenerationOptions
    from retroflow.tasks.open_qa import predict_answers

    lm = rf.load(run, device="cpu")
    chunks = job.splits.train_chunks
    prompt = lm.tokenizer.decode([token for token in chunks.tokens[0].tolist() if token != chunks.end_of_text])
    question = Question("q", prompt.removeprefix("question: ").removesuffix("\nanswer:"), ("x",))
    ways = {"off": None, "on": lm.database}
    result = predict_answers(lm, [question], ways, GenerationOptions(num_neighbours=2), lambda count: None)
    assert result.predictions[0]["ways"]["on"]["passages"] == job.splits.train_neighbours[0].tolist()


def test_evaluate_measures_the_run_as_fit_did_and_with_another_database(run, tmp_path):
    report = rf.evaluate(run, output=tmp_path / "again.json")
    assert report.to_json()["validation"]["on"]["loss"] == pytest.approx(run.report["validation"]["on"]["loss"])
    shutil.copytree(run.folder.parents[2] / "db", tmp_path / "other")
    Database.open(tmp_path / "other").remove([f"d{place}" for place in range(9)])
    changed = rf.evaluate(run, f"database={tmp_path / 'other'}", output=tmp_path / "other.json").to_json()
    assert changed["validation"]["on"]["loss"] != pytest.approx(run.report["validation"]["on"]["loss"])
    assert changed["validation"]["off"]["loss"] == pytest.approx(run.report["validation"]["off"]["loss"])


def test_compare_reads_the_passages_and_leaves_out_what_would_read_padding(run, tmp_path):
    found = rf.compare(run, sequences="all", output=tmp_path)
    names = [row.name for row in found.rows]
    assert names[:4] == ["off", "on", "shuffled", "random"] and "neighbour_only" in names
    for row in found.rows[:4]:
        assert row.nats == pytest.approx(run.report["validation"][row.name]["loss"], abs=1e-5)
    table = run_to_measure(run.folder).job().splits.validation_neighbours
    assert (shuffled(table, seed=0, questions=True)[::2] >= 0).any(axis=1).all() and len(table) > 4
    assert set(found.left_out) == {"in_context_first", "in_context", "knn_lm"}
    version = rf.Database.open(run.folder.parents[2] / "db").version
    assert RunPlan.of(run.folder, [], sequences=None, checkpoint=None).definition["passages"] == version.fingerprint
    with pytest.raises(UsageError, match="^nothing can be looked up: the run has no index of its own"):
        rf.curve(run, over="k", values=[3], output=tmp_path)


def test_what_does_not_fit_is_refused(run, tmp_path):
    recipe = run.folder.parents[2] / "asked.yaml"
    for words, error, message in (
        (["data.sequence_chunks=4"], UsageError, "data.sequence_chunks is 4; with data.format qa a sequence is"),
        (
            ["trainer.random_target=base", "trainer.random_neighbours=0.1"],
            UsageError,
            "trainer.random_target is given, and",
        ),
        (["data.passages=x"], UsageError, "data.passages is given beside database"),
        (
            ["database=null", "retriever.name=exact", "embedder.name=lexical"],
            UsageError,
            "data.passages is null; with data.format qa name the database",
        ),
        (
            ["database=null", "retriever.name=exact", "embedder.name=lexical", "data.format=text", "data.passages=x"],
            UsageError,
            'data.passages is "x"; only data.format qa reads passages',
        ),
    ):
        with pytest.raises(error, match=message):
            rf.fit(rf.load_recipe(recipe, *words, f"data.artifacts_folder={tmp_path}"))
    lines = [json.dumps({"id": str(place), "text": f"no answer {place}"}) for place in range(20)]
    (tmp_path / "plain.jsonl").write_text("\n".join(lines))
    words = [f"corpus={{name: jsonl, path: {tmp_path / 'plain.jsonl'}, valid_share: 0.5}}"]
    with pytest.raises(CorpusError, match='a document of data.format "qa" is "question: ...'):
        rf.prepare(rf.load_recipe(recipe, *words, f"data.artifacts_folder={tmp_path}"))
