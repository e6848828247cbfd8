"""Open-domain question answering: questions, and passages from a database that the model reads as neighbours.

In the form of RETRO's evaluation on Natural Questions (Borgeaud et al. 2022, arXiv:2112.04426, section 4.3 and appendix
C.4): "question: ... answer:" is padded at the left up to the end of a chunk, so that its passages are read from the
first token of the answer on. The answer is written greedily, up to the end of its line.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from retroflow.corpus.questions import Question
from retroflow.database.passages import Passages
from retroflow.generation.database import RetrievalDatabase
from retroflow.generation.decoding import stream
from retroflow.generation.language_model import LanguageModel
from retroflow.generation.options import GenerationOptions
from retroflow.generation.retrieved import LiveRetriever
from retroflow.protocols import Int64Array
from retroflow.tasks.answers import exact_match, f1, is_in
from retroflow.tasks.results import OFF, ON, Metric, TaskResult
from retroflow.tasks.retrievers import GivenPassages, RandomChunks

ANSWER_TOKENS = 32
"""An answer is cut after so many tokens."""

RECALL_AT = (1, 5, 20)
"""Passages among which an answer is looked for; those that are read are added."""


def predict_answers(
    opened: LanguageModel,
    questions: Sequence[Question],
    ways: Mapping[str, RetrievalDatabase | RandomChunks | None],
    options: GenerationOptions,
    advance: Callable[[int], None],
) -> TaskResult:
    """Answer questions without passages, with those that the database finds, and with random ones.

    Args:
        opened: the model, with its database.
        questions: to answer.
        ways: by name, where passages are found; None for no passages.
        options: num_neighbours is the number of passages.
        advance: called after each answer; may raise to stop.
    """
    prompts = [opened.tokenizer.encode(question.prompt).ids.tolist() for question in questions]
    found: dict[str, Int64Array] = {}
    if opened.database is not None:
        queries = [opened.tokenizer.encode(question.text).ids.tolist() for question in questions]
        most = max(*RECALL_AT, options.num_neighbours)
        found = {way: source.nearest(queries, most).ids for way, source in ways.items() if source is not None}
    passages = None if opened.database is None else Passages(opened.database.chunks, opened.tokenizer)
    answers = {}
    for way in ways:
        retriever = None
        if passages is not None and way != OFF:
            windows = [tuple(prompt[-opened.model.config.chunk_length :]) for prompt in prompts]
            retriever = _given(passages, windows, found[way][:, : options.num_neighbours], opened.tokenizer.end_of_text)
        answers[way] = _answer(opened, prompts, retriever, options, advance)
    predictions = [
        {
            "id": question.id,
            "question": question.text,
            "answers": list(question.answers),
            "ways": {
                way: {
                    "answer": texts[place],
                    "exact_match": exact_match(texts[place], question.answers),
                    "f1": f1(texts[place], question.answers),
                    "passages": found[way][place, : options.num_neighbours].tolist() if way in found else [],
                }
                for way, texts in answers.items()
            },
        }
        for place, question in enumerate(questions)
    ]
    measured = {"retrieval_step": opened.model.config.chunk_length}
    result = TaskResult("", _metrics(predictions, ways), predictions, len(questions), measured=measured)
    return result if passages is None else _with_recall(result, passages, found[ON], options.num_neighbours)


def _given(passages: Passages, windows: Sequence[tuple[int, ...]], ids: Int64Array, filler: int) -> GivenPassages:
    tokens, mask = passages.read(ids, ids >= 0)
    by_window = {window: (tokens[place], mask[place]) for place, window in enumerate(windows)}
    return GivenPassages(by_window, filler=filler)


def _answer(
    opened: LanguageModel,
    prompts: Sequence[Sequence[int]],
    retriever: LiveRetriever | None,
    options: GenerationOptions,
    advance: Callable[[int], None],
) -> list[str]:
    answers = [""] * len(prompts)
    # Passages are read until the next lookup, which finds nothing.
    options = replace(options, max_new_tokens=ANSWER_TOKENS, stop=("\n",), retrieval_step=None)
    for piece in stream(opened.model, opened.tokenizer, prompts, retriever=retriever, options=options):
        if piece.generation is not None:
            answers[piece.number] = piece.generation.text.strip()
            advance(1)
    return answers


def _metrics(predictions: Sequence[Mapping[str, Any]], ways: Mapping[str, Any]) -> tuple[Metric, ...]:
    def values(key: str) -> dict[str, Any]:
        return {way: np.array([one["ways"][way][key] for one in predictions], dtype=np.float64) for way in ways}

    return (
        Metric("exact_match", "share of answers that are an accepted one, normalised", values("exact_match")),
        Metric("f1", "words shared with the best accepted answer", values("f1")),
    )


def _with_recall(result: TaskResult, passages: Passages, found: Int64Array, k: int) -> TaskResult:
    """Add how often an answer is in the passages, and the split by it."""
    rank = np.full(len(found), np.iinfo(np.int64).max)
    for place, prediction in enumerate(result.predictions):
        ids = found[place][found[place] >= 0].tolist()
        held = [number for number, id in enumerate(ids) if is_in(passages.text(id), prediction["answers"])]
        prediction["first_passage_with_answer"] = held[0] + 1 if held else None
        rank[place] = held[0] if held else rank[place]
    recall = {f"recall_at_{count}": float((rank < count).mean()) for count in sorted({*RECALL_AT, k})}
    meaning = "share of questions with an accepted answer in one of the first passages of the database"
    return replace(
        result,
        groups={"answer in a passage that is read": rank < k, "answer in none of them": rank >= k},
        facts=recall,
        definitions=dict.fromkeys(recall, meaning),
    )
