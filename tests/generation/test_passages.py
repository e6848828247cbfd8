"""Passages are read line by line, and scored by every database as `score` does."""

import gzip
import json
from types import SimpleNamespace

import pytest

from retroflow.errors import GenerationError
from retroflow.generation.language_model import LanguageModel
from retroflow.generation.passages import Passage, read_passages, score_passages
from retroflow.generation.scoring import score
from tests.generation.small import HashRetriever, LetterTokenizer, make_model


class Database(HashRetriever):
    """As long as it is asked to be."""

    def __init__(self, size=9):
        super().__init__(4)
        self.size = size

    def __len__(self):
        return self.size


@pytest.fixture
def opened():
    return LanguageModel(make_model().eval(), LetterTokenizer(), SimpleNamespace(num_neighbours=2), None)


def test_a_file_is_read_plain_and_compressed(tmp_path):
    lines = [
        {"text": "a", "context": "b", "old_text": "c", "document": 7, "groups": ["x", "y", "x"], "other": 1},
        {"text": "d"},
    ]
    content = "\n".join(map(json.dumps, lines))
    (tmp_path / "plain.jsonl").write_text(content)
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    for file in sorted(tmp_path.iterdir()):
        first, second = read_passages(file)
        assert first == Passage("a", "b", "c", 7, ("x", "y"), f"{file}:1")
        assert second == Passage("d", document=f"{file}:2", where=f"{file}:2")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "has no passage"),
        ("text", r":1: not a JSON object \("),
        ("[1]", r":1: not a JSON object \(it is not an object\)"),
        ("{}", ':1: "text" is missing or empty'),
        ('{"text": "a", "old_text": ""}', ':1: "old_text" is missing or empty'),
        ('{"text": 3}', ':1: "text" is 3; it must be a text'),
        ('{"text": "a", "groups": "x"}', ':1: "groups" is "x"; it must be a list of texts'),
        ('{"text": "a", "groups": [1]}', r':1: "groups" is \[1\]; it must be a list of texts'),
        ('{"text": "a", "document": 1.5}', ':1: "document" is 1.5; it must be a text or a whole number'),
    ],
)
def test_a_line_that_is_no_passage_is_refused_with_its_place(tmp_path, line, message):
    (tmp_path / "p.jsonl").write_text(line)
    with pytest.raises(GenerationError, match=message):
        read_passages(tmp_path / "p.jsonl")


def test_each_database_gives_the_scores_that_it_gives_alone(opened, monkeypatch):
    monkeypatch.setattr("retroflow.generation.passages.bf16_pays", lambda device: False)
    passages = [
        Passage("keep names.", "the notes of a book "),
        Passage("of a book.", "the notes ", old_text="of no book"),
    ]
    found = score_passages(opened, {"first": Database()}, passages, num_neighbours=2)
    for place, passage in enumerate(passages):
        for way, retriever in {"off": None, "first": Database()}.items():
            for name, text in passage.texts.items():
                wanted = score(opened.model, opened.tokenizer, text, context=passage.context, retriever=retriever)
                assert found.nats[name][way][place] == pytest.approx(sum(wanted.nats))
    assert found.tokens["text"].tolist() == [11, 10] and found.tokens["old_text"].tolist() == [0, 10]
    assert found.nats["text"]["off"][0] != found.nats["text"]["first"][0]


def test_what_cannot_be_scored_is_refused_with_its_place(opened):
    with pytest.raises(GenerationError, match=r'p:1: "text" is one token, which needs a "context"'):
        score_passages(opened, {}, [Passage("a", where="p:1")], num_neighbours=2)
    with pytest.raises(GenerationError, match="num_neighbours is 10; allowed: 1 to 9"):
        score_passages(opened, {"first": Database()}, [Passage("ab")], num_neighbours=10)
