"""Questions are answered with passages, which are read from the first token of the answer on."""

import json
from pathlib import Path

import numpy as np
import pytest

import retroflow as rf
from retroflow.corpus.questions import Question, read_questions
from retroflow.database.passages import Passages
from retroflow.errors import DamagedDataError
from retroflow.generation import GenerationOptions
from retroflow.tasks.open_qa import predict_answers
from retroflow.tasks.results import OFF, ON, RANDOM
from retroflow.tasks.retrievers import GivenPassages, RandomChunks, drawn
from tests.cli.conftest import trained as trained  # a fixture

QUESTIONS = [
    Question("q1", "How many lamps are near the harbour?", ("lamps near the harbour", "no such words")),
    Question("q2", "Who?", ("nobody at all",)),
]


@pytest.fixture(scope="module")
def opened(trained: Path):
    return rf.load(trained, device="cpu")


@pytest.mark.parametrize(
    "line",
    [
        {"question": "Who wrote it?", "answer": ["Ann", "Bo"]},
        {"id": "x", "text": "Who wrote it?", "meta": {"answers": ["Ann", "Bo"]}},
        {"question": "Who wrote it?", "answers": "Ann", "text": "a passage that is not read"},
    ],
)
def test_published_files_are_read(tmp_path, line):
    (tmp_path / "q.jsonl").write_text(json.dumps(line))
    (found,) = read_questions(tmp_path / "q.jsonl")
    assert found.text == "Who wrote it?" and found.answers[0] == "Ann"
    assert found.id == line.get("id", f"{tmp_path / 'q.jsonl'}:1")
    assert found.prompt == "question: Who wrote it?\nanswer:" and found.answered == f"{found.prompt} Ann"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "q.jsonl:1: has no question"),
        ('{"text": "who"}', "q.jsonl:1: has no answers, a list of texts"),
        ('{"text": "who", "answers": []}', "q.jsonl:1: has no answers"),
        ("[1]", "q.jsonl:1: the line is a list"),
    ],
)
def test_a_line_without_question_or_answer_is_refused_with_its_place(tmp_path, line, message):
    (tmp_path / "q.jsonl").write_text(line)
    with pytest.raises(DamagedDataError, match=message):
        list(read_questions(tmp_path / "q.jsonl"))


def test_a_passage_is_title_and_text_cut_to_two_chunks(opened):
    database = opened.database
    passages = Passages(database.chunks, opened.tokenizer)
    ids = np.array([[0, 3], [-1, 1]])
    tokens, mask = passages.read(ids, ids >= 0)
    assert tokens.shape == mask.shape == (2, 2, 16) and mask[0].all() and not mask[1, 0].any()
    title = database.chunks.document(int(database.chunks.document_ids[np.array([3])][0])).title
    assert f"title: {title}, source: ".startswith(passages.text(3)[:10])
    assert opened.tokenizer.decode(tokens[0, 1].tolist()) == passages.text(3)
    whole = Passages(database.chunks, opened.tokenizer)
    whole._chunks = database.chunks
    assert passages.tokens_of(3) == whole.tokens_of(3)


def test_passages_are_read_at_the_end_of_the_prompt_and_nowhere_else():
    tokens, mask = np.full((2, 16), 7), np.ones((2, 16), dtype=bool)
    given = GivenPassages({(1, 2): (tokens, mask)}, filler=0)
    found = given.retrieve([[1, 2], [2]], 2)
    assert (found.tokens[0] == 7).all() and found.mask[0].all() and not found.mask[1].any()


def test_random_chunks_depend_on_the_window_and_the_seed_alone(opened):
    queries = [[1, 2, 3], [4]]
    first, again = (RandomChunks(opened.database).retrieve(queries, 2) for _ in range(2))
    assert (first.tokens == again.tokens).all() and first.mask.any()
    assert (drawn(50, queries, 2, seed=0).ids != drawn(50, queries, 2, seed=1).ids).any()
    assert sorted(drawn(2, queries, 3, seed=0).ids[0].tolist()) == [-1, 0, 1]
    assert len(set(drawn(5, queries, 5, seed=0).ids[0].tolist())) == 5


def test_answers_recall_and_the_split_by_what_was_read(opened):
    ways = {OFF: None, ON: opened.database, RANDOM: RandomChunks(opened.database)}
    finished = []
    drawn_again = {OFF: None, RANDOM: RandomChunks(opened.database, seed=1), ON: opened.database}
    other = predict_answers(opened, QUESTIONS, drawn_again, GenerationOptions(num_neighbours=2), lambda count: None)
    result = predict_answers(opened, QUESTIONS, ways, GenerationOptions(num_neighbours=2), finished.append)
    assert len(finished) == 6
    first, second = result.predictions
    assert set(first["ways"]) == {OFF, ON, RANDOM} and first["ways"][OFF]["passages"] == []
    assert len(first["ways"][ON]["passages"]) == 2
    assert first["ways"][RANDOM]["passages"] != other.predictions[0]["ways"][RANDOM]["passages"]  # of another seed
    found = opened.database.nearest([opened.tokenizer.encode(QUESTIONS[0].text).ids.tolist()], 20).ids[0]
    assert first["ways"][ON]["passages"] == found[:2].tolist()
    passages = Passages(opened.database.chunks, opened.tokenizer)
    held = ["lamps near the harbour" in passages.text(id) for id in found.tolist()]
    assert first["first_passage_with_answer"] == (held.index(True) + 1 if any(held) else None)
    assert second["first_passage_with_answer"] is None
    assert result.facts["recall_at_20"] == any(held) / 2
    read, unread = result.groups.values()
    assert (read != unread).all() and not read[1]
    prompt = QUESTIONS[1].prompt
    off = opened.with_database(None).generate(prompt, max_new_tokens=32, stop=("\n",), retrieval_step=8)
    assert second["ways"][OFF]["answer"] == off.text.strip()


def test_a_model_without_a_database_answers_from_its_weights(opened):
    closed = opened.with_database(None)
    result = predict_answers(closed, QUESTIONS, {OFF: None}, GenerationOptions(), lambda count: None)
    assert set(result.predictions[0]["ways"]) == {OFF} and not result.facts and not result.groups
