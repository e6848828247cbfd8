"""A last word counts where greedy decoding writes all of it."""

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest

from retroflow.errors import DamagedDataError
from retroflow.generation import GenerationOptions
from retroflow.generation.language_model import LanguageModel
from retroflow.tasks.lambada import LastWord, predict_last_words, read_last_words
from tests.generation.small import HashRetriever, LetterTokenizer, make_model

ORIGIN = SimpleNamespace(num_neighbours=2, retrieval_step=None, sequence_length=24)


@pytest.fixture
def opened():
    return LanguageModel(make_model(2).eval(), LetterTokenizer(), ORIGIN, None)


def test_the_word_is_what_follows_the_last_space(tmp_path):
    lines = [{"id": "one", "text": "a b\n\nc d.  ", "meta": {"target": "d."}}, {"text": "no idea"}]
    (tmp_path / "l.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    first, second = read_last_words(tmp_path / "l.jsonl.gz")
    assert first == LastWord("one", "a b\n\nc", "d.") and (second.context, second.word) == ("no", "idea")
    (tmp_path / "bad.jsonl").write_text('{"text": "word"}')
    with pytest.raises(DamagedDataError, match=r'bad.jsonl:1: "text" needs two words or more'):
        read_last_words(tmp_path / "bad.jsonl")


@pytest.mark.parametrize("retrieves", [True, False])
def test_accuracy_is_that_of_writing_the_word_and_perplexity_that_of_scoring_it(opened, retrieves):
    opened = LanguageModel(opened.model, opened.tokenizer, ORIGIN, HashRetriever(4) if retrieves else None)
    contexts = ["the notes of a book", "of names that", "a book of names that keep the notes"]
    written = [opened.generate(f"{context} ", max_new_tokens=3, stop_at_end_of_text=False) for context in contexts]
    passages = [
        LastWord(str(place), context, "zzz" if place == 2 else answer.text)
        for place, (context, answer) in enumerate(zip(contexts, written, strict=True))
    ]
    finished = []
    options = GenerationOptions(batch_size=2)
    result = predict_last_words(opened, passages, {"way": opened.database}, options, finished.append)
    accuracy, perplexity = result.metrics
    for passage, prediction, nats in zip(passages, result.predictions, perplexity.values["way"], strict=True):
        context = passage.context[-(24 - len(passage.word)) :]  # a sequence has 24 tokens
        assert prediction["context_tokens"] == len(context)
        score = opened.score(f" {passage.word}", context=context)
        assert nats == pytest.approx(sum(score.nats), abs=1e-6)
        greedy = opened.generate(context, max_new_tokens=len(passage.word) + 1, stop_at_end_of_text=False)
        assert prediction["ways"]["way"]["correct"] == (greedy.text == f" {passage.word}")
    assert sum(finished) == 3 and accuracy.values["way"][2] == 0
    shown = result.to_json()["groups"]["all"]["ways"]["way"]["perplexity"]["value"]
    assert shown == pytest.approx(np.exp(perplexity.values["way"].mean()))
