"""Our own tasks: their names, and how they are run on a model."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.console import progress
from retroflow.corpus.questions import LINES as QUESTION_LINES
from retroflow.corpus.questions import read_questions
from retroflow.errors import RetroflowError, UsageError
from retroflow.generation.database import RetrievalDatabase
from retroflow.generation.language_model import LanguageModel
from retroflow.generation.options import GenerationOptions
from retroflow.runs.description import RUN_FILE
from retroflow.runs.folder import write_report
from retroflow.store.atomic import canonical_json, write_file
from retroflow.tasks.files import find_file
from retroflow.tasks.lambada import LINES as LAMBADA_LINES
from retroflow.tasks.lambada import predict_last_words, read_last_words
from retroflow.tasks.open_qa import predict_answers
from retroflow.tasks.results import OFF, ON, RANDOM, TaskResult
from retroflow.tasks.retrievers import RandomChunks

RESULTS_FOLDER = "tasks"
"""Folder of a run with the results and the predictions."""

_SAMPLE_STREAM = 7


@dataclass(frozen=True)
class Task:
    """One of our tasks.

    Attributes:
        meaning: in a few words, for help and documentation.
        files: names of its file, as `find_file` takes them.
        lines: an example of a line.
        read: reads the file's examples.
        predict: makes predictions and metrics of examples.
    """

    meaning: str
    files: tuple[str, ...]
    lines: str
    read: Callable[[Path], list[Any]]
    predict: Callable[..., Any]


def _questions(file: Path) -> list[Any]:
    return list(read_questions(file))


TASKS = {
    "lambada": Task(
        "the last word of a passage: accuracy of greedy decoding, perplexity",
        ("lambada.jsonl", "lambada/test.jsonl", "lambada_test.jsonl"),
        LAMBADA_LINES,
        read_last_words,
        predict_last_words,
    ),
    "nq_open": Task(
        "questions of Natural Questions, answered from a database: exact match, F1",
        ("nq_open.jsonl", "nq_open.dev.jsonl", "NQ-open.dev.jsonl", "NQ-open.efficientqa.dev.1.1.jsonl"),
        QUESTION_LINES,
        _questions,
        predict_answers,
    ),
    "xquad": Task(
        "questions of XQuAD, answered from a database of its paragraphs: exact match, F1",
        ("xquad.jsonl", "xquad_en.questions.jsonl"),
        QUESTION_LINES,
        _questions,
        predict_answers,
    ),
    "qa": Task(
        "your own questions, answered from a database: exact match, F1",
        ("qa.jsonl", "questions.jsonl"),
        QUESTION_LINES,
        _questions,
        predict_answers,
    ),
}
"""Every task of our own by name; other names are those of lm-evaluation-harness."""


def run_task(
    opened: LanguageModel,
    name: str,
    *,
    folder: Path | None,
    limit: int | None = None,
    options: GenerationOptions,
    seed: int = 0,
) -> TaskResult:
    """Run one of our tasks without retrieval and, if the model has a database, with it and with random chunks of it.

    Args:
        opened: the model, with its database.
        name: of `TASKS`.
        folder: of the files; None for the one that the environment names.
        limit: examples to draw at random; None for all of them.
        options: num_neighbours, retrieval_step and batch_size.
        seed: of the draws.

    Raises:
        UsageError: there is no such file, or nothing in it.
        RetroflowError: an example cannot be read, or is longer than the model's input.
    """
    task = TASKS[name]
    file = find_file(name, task.files, task.lines, folder)
    examples = task.read(file)
    if not examples:
        raise UsageError(f"{file}: has no line; {name} needs lines such as {task.lines}.")
    drawn = examples
    if limit is not None and limit < len(examples):
        places = np.random.default_rng([seed, _SAMPLE_STREAM]).choice(len(examples), size=limit, replace=False)
        drawn = [examples[place] for place in np.sort(places)]
    ways: dict[str, RetrievalDatabase | RandomChunks | None] = {OFF: None}
    if (database := opened.database) is not None:
        ways |= {ON: database, RANDOM: RandomChunks(database, seed=seed)}
    with progress(name, len(ways) * len(drawn), "examples") as advance:
        found: TaskResult = task.predict(opened, drawn, ways, options, advance)
    measured = {
        "model": opened.origin.recipe,
        "step": opened.origin.step,
        "database": None if database is None else database.name,
        "file": file.name,
        "file_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "limit": limit,
        "num_neighbours": options.num_neighbours,
        "retrieval_step": options.step_for(opened.model.config.chunk_length),
        "seed": seed,
    }
    return replace(found, task=name, available=len(examples), measured=measured | dict(found.measured), seed=seed)


def write_result(result: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write a result as JSON, and its predictions beside it as JSON Lines; the names come from what was measured.

    Returns:
        The file of the result.

    Raises:
        RetroflowError: they cannot be written.
    """
    digest = hashlib.sha256(canonical_json(dict(result["measured"]))).hexdigest()[:8]
    file = folder / f"{result['task']}-{digest}.json"
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in predictions)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(file.with_suffix(".jsonl"), lines.encode())
    except OSError as error:
        raise RetroflowError(
            f"output='{folder}': cannot be written ({error.strerror}); give another folder for the results."
        ) from error
    write_report(file, result)
    return file


def results_folder(model: Path, output: Path | None) -> Path | None:
    """Return where results are written: `output`, or a run's folder `tasks`; None for an exported model."""
    if output is not None:
        return output
    return model / RESULTS_FOLDER if (model / RUN_FILE).is_file() else None
