"""Questions with their answers, and the form in which a model reads them.

The form is that of RETRO's fine-tuning on Natural Questions (Borgeaud et al. 2022, arXiv:2112.04426, section 4.3 and
appendix C.4): "question: ... answer: ...", and passages as "title: ..., source: ...".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroflow.corpus.jsonl import read_objects
from retroflow.errors import CorpusError, DamagedDataError

LINES = '{"id": "q1", "question": "who wrote it", "answers": ["Ann", "Ann Lee"]}'
"""An example for errors and help."""

ANSWER = "\nanswer:"
"""Stands between a question and its answer."""


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        id: its own, or its place.
        text: the question.
        answers: accepted ones, at least one; the first is the one to train on.
    """

    id: str
    text: str
    answers: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """What the model reads before it answers."""
        return f"question: {self.text}{ANSWER}"

    @property
    def answered(self) -> str:
        """The prompt with the first answer."""
        return f"{self.prompt} {self.answers[0]}"


def passage_text(title: str, text: str) -> str:
    """Return a passage as the model reads it."""
    return f"title: {title}, source: {text}" if title else f"source: {text}"


def read_questions(file: Path) -> Iterator[Question]:
    """Read JSON Lines, plain, .gz or .zst.

    A line has the question as "question" or "text", and its answers as "answers" or "answer" (a list or one text), at
    the top or in "meta": the files of NQ-open and TriviaQA as they are published, and documents of the JSONL corpus.

    Raises:
        CorpusError: the file cannot be read.
        DamagedDataError: a line has no question or no answer; the message has its place.
    """
    for where, values in read_objects(file):
        yield _question(values, where)


def _question(values: dict[str, Any], where: str) -> Question:
    meta = values.get("meta")
    found = (meta if isinstance(meta, dict) else {}) | values
    text = found.get("question", found.get("text"))
    answers = found.get("answers", found.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(text, str) or not text.strip():
        raise DamagedDataError(f"{where}: has no question; write a line such as {LINES}.")
    if not isinstance(answers, list) or not answers or not all(isinstance(each, str) and each for each in answers):
        raise DamagedDataError(f"{where}: has no answers, a list of texts; write a line such as {LINES}.")
    return Question(str(found.get("id", where)), text.strip(), tuple(answers))


def question_of(prompt: str) -> str:
    """Return the question of a prompt, whose beginning may be missing."""
    return prompt.removesuffix(ANSWER).removeprefix("question: ").strip()


def split_at_answer(text: str, where: str) -> tuple[str, str]:
    """Return the prompt of a text such as "question: ... answer: Ann", and the answer with its leading space.

    Raises:
        CorpusError: it has no answer in that form.
    """
    before, marker, answer = text.partition(ANSWER)
    if not marker or not answer.strip():
        raise CorpusError(
            f'{where}: a document of data.format "qa" is "question: ...{ANSWER!r} ...", and this one has no answer; '
            "read question files with corpus.name=questions."
        )
    return before + marker, " " + answer.strip()
