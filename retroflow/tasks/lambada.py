"""LAMBADA: predict the last word of a passage, which needs what is said before its last sentence.

Paperno et al. 2016, arXiv:1606.06031. Accuracy is that of greedy decoding: every token of the word has to be the
likeliest after the ones before it (Borgeaud et al. 2022, arXiv:2112.04426, section 2.6).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.corpus.jsonl import read_objects
from retroflow.errors import DamagedDataError
from retroflow.generation.language_model import LanguageModel
from retroflow.generation.options import GenerationOptions
from retroflow.generation.retrieved import LiveRetriever
from retroflow.generation.scoring import Score, score_after
from retroflow.tasks.results import Metric, TaskResult

LINES = '{"text": "... and the whole passage with its last word"}'


@dataclass(frozen=True)
class LastWord:
    """A passage, without its last word, and the word.

    Attributes:
        id: its own, or its place.
        context: the passage up to the word, without the space between them.
        word: the last word.
    """

    id: str
    context: str
    word: str


def read_last_words(file: Path) -> list[LastWord]:
    """Read passages, {"text": ...} on every line; the last word is what follows the last space.

    Raises:
        DamagedDataError: a text has fewer than two words; the message has its place.
    """
    found = []
    for where, values in read_objects(file):
        text = values.get("text")
        parts = text.rstrip().rsplit(maxsplit=1) if isinstance(text, str) else []
        if len(parts) < 2:
            raise DamagedDataError(f'{where}: "text" needs two words or more; write {LINES}.')
        found.append(LastWord(str(values.get("id", where)), *parts))
    return found


def predict_last_words(
    opened: LanguageModel,
    passages: Sequence[LastWord],
    ways: Mapping[str, LiveRetriever | None],
    options: GenerationOptions,
    advance: Callable[[int], None],
) -> TaskResult:
    """Score the last words in each way of retrieving.

    Args:
        opened: the model.
        passages: without their last words.
        ways: name -> what is retrieved.
        options: as in `score_after`.
        advance: called with the number of finished passages; may raise to stop.
    """
    pairs = [opened.split_tokens(passage.context, f" {passage.word}") for passage in passages]
    scores: dict[str, list[Score]] = {
        way: score_after(opened.model, opened.tokenizer, pairs, retriever=retriever, options=options, advance=advance)
        for way, retriever in ways.items()
    }
    predictions: list[dict[str, Any]] = [
        {
            "id": passage.id,
            "word": passage.word,
            "tokens": len(pairs[place][1]),
            "context_tokens": len(pairs[place][0]),
            "ways": {
                way: {"nats": sum(found[place].nats), "correct": all(found[place].likeliest)}
                for way, found in scores.items()
            },
        }
        for place, passage in enumerate(passages)
    ]

    def values(key: str) -> dict[str, Any]:
        return {way: np.array([float(one["ways"][way][key]) for one in predictions]) for way in ways}

    metrics = (
        Metric("accuracy", "share of words that greedy decoding writes whole", values("correct")),
        Metric("perplexity", "exponential of the mean nats of a word", values("nats"), is_log=True),
    )
    return TaskResult("", metrics, predictions, len(passages))
