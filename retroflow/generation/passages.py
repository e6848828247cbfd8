"""Passages of text to score with several databases: what a change of the database is worth to the same model."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retroflow.corpus.compressed import read_lines
from retroflow.devices import bf16_pays
from retroflow.errors import GenerationError, InvalidShapeError
from retroflow.generation.arguments import unfit
from retroflow.generation.database import RetrievalDatabase
from retroflow.generation.language_model import LanguageModel
from retroflow.generation.opening import open_language_model
from retroflow.generation.options import GenerationOptions
from retroflow.generation.retrieved import LiveRetriever
from retroflow.generation.scoring import score_each
from retroflow.protocols import Int64Array
from retroflow.runs.description import RUN_FILE

_LONGEST_LINE = 1 << 26

_KINDS: dict[str, Any] = {"text": str, "context": str, "old_text": str, "document": (str, int), "groups": list}
"""Keys of a line that are read; the others are ignored."""


@dataclass(frozen=True)
class Passage:
    """A text to predict.

    Attributes:
        text: is scored.
        context: comes before it, and is not scored.
        old_text: another text for the same place, to compare with; None if there is none.
        document: that it belongs to. Intervals are over documents.
        groups: that it is reported in, besides "all".
        where: file and line.
    """

    text: str
    context: str = ""
    old_text: str | None = None
    document: str | int = ""
    groups: tuple[str, ...] = ()
    where: str = ""

    @property
    def texts(self) -> dict[str, str]:
        """The texts to score, by name."""
        return {"text": self.text} | ({} if self.old_text is None else {"old_text": self.old_text})


@dataclass(frozen=True)
class Scores:
    """What was measured of P passages.

    Attributes:
        nats: name of the text -> name of the database, or "off" -> float64 [P], summed over the text's tokens.
        tokens: name of the text -> int64 [P], predicted tokens; 0 where a passage has no such text.
        bytes: name of the text -> int64 [P], of the text in UTF-8.
    """

    nats: dict[str, dict[str, NDArray[np.float64]]]
    tokens: dict[str, Int64Array]
    bytes: dict[str, Int64Array]


def read_passages(file: Path) -> list[Passage]:
    """Read JSON Lines, plain, .gz or .zst: `{"text": ..., "context": ..., "document": ...}`; see `Passage`.

    Raises:
        GenerationError: there is no passage, or a line is not one; the message has file and line.
        RetroflowError: the file cannot be read.
    """
    if not file.is_file():
        raise unfit("passages", f'there is no file "{file}"; give JSON Lines such as {{"text": "..."}}.')
    passages = [_passage(line, f"{file}:{number}") for number, line in read_lines(file, _LONGEST_LINE)]
    if not passages:
        raise GenerationError(f'{file}: has no passage; write one {{"text": "..."}} on every line.')
    return passages


def _passage(line: bytes, where: str) -> Passage:
    try:
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
    except (ValueError, RecursionError) as error:
        raise GenerationError(
            f'{where}: not a JSON object ({error}); write {{"text": "...", "context": "..."}} on every line.'
        ) from error
    given = {name: values[name] for name in _KINDS if values.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, _KINDS[name]) or (name == "groups" and not all(isinstance(one, str) for one in value)):
            wanted = {"document": "a text or a whole number", "groups": "a list of texts"}.get(name, "a text")
            raise GenerationError(f'{where}: "{name}" is {json.dumps(value):.60}; it must be {wanted}.')
    for name in ("text", "old_text"):
        if given.get(name, "" if name == "text" else None) == "":
            raise GenerationError(f'{where}: "{name}" is missing or empty; a text of at least one character is needed.')
    groups = tuple(dict.fromkeys(given.pop("groups", ())))
    return Passage(**{"document": where} | given, groups=groups, where=where)


def open_with_databases(
    folder: Path, databases: Sequence[Path | str], *, device: str = "auto", checkpoint: str | None = None
) -> tuple[LanguageModel, dict[str, RetrievalDatabase]]:
    """Open a model, and databases by name: a run's own first, then the others in their order.

    Raises:
        GenerationError: the model reads nothing, or a database is missing, unfit or given twice.
        RetroflowError: as `open_language_model`.
    """
    places = [folder, *databases] if (folder / RUN_FILE).is_file() else list(databases)
    opened, by_name = open_language_model(folder, retrieval=False, device=device, checkpoint=checkpoint), {}
    if not opened.model.config.retrieves:
        raise GenerationError(f'"{folder}": this model reads no neighbours, so a database changes nothing.')
    if not places:
        raise unfit("database", "an exported model has no database of its own; give an index folder.")
    for place in places:
        database = opened.with_database(place).database
        assert database is not None
        name = database.name
        if name in by_name:
            raise unfit("database", f'"{place}" is {name}, which is measured anyway; give another one.')
        by_name[name] = database
    return opened, by_name


def score_passages(
    opened: LanguageModel,
    databases: Mapping[str, RetrievalDatabase],
    passages: Sequence[Passage],
    *,
    num_neighbours: int,
    retrieval_step: int | None = None,
    advance: Callable[[int], None] = lambda passages: None,
) -> Scores:
    """Score passages with retrieval off and with each database; the model does not change.

    It computes in bfloat16 where that is faster, as an evaluation does.

    Args:
        opened: the model.
        databases: by name.
        passages: of at least one token each.
        num_neighbours: as in `LanguageModel.score`.
        retrieval_step: as in `LanguageModel.score`.
        advance: called after each passage; may raise to stop.

    Raises:
        GenerationError: a passage cannot be scored; the message has its place.
    """
    GenerationOptions(retrieval_step=retrieval_step).step_for(opened.model.config.chunk_length)
    for database in databases.values():
        if num_neighbours > len(database):
            allowed = f"1 to {len(database):,}, the chunks of the smallest database"
            raise unfit("num_neighbours", f"is {num_neighbours}; allowed: {allowed}.")
    ways: dict[str, LiveRetriever | None] = {"off": None, **databases}
    names = [name for name in ("text", "old_text") if any(name in passage.texts for passage in passages)]
    count, device = len(passages), next(opened.model.parameters()).device.type
    scores = Scores(
        {name: {way: np.zeros(count) for way in ways} for name in names},
        {name: np.zeros(count, dtype=np.int64) for name in names},
        {name: np.zeros(count, dtype=np.int64) for name in names},
    )
    for place, passage in enumerate(passages):
        for way, retriever in ways.items():
            try:
                with torch.autocast(device, torch.bfloat16, enabled=bf16_pays(device)):
                    found = score_each(
                        opened.model,
                        opened.tokenizer,
                        list(passage.texts.values()),
                        context=passage.context,
                        retriever=retriever,
                        num_neighbours=num_neighbours,
                        retrieval_step=retrieval_step,
                    )
            except (GenerationError, InvalidShapeError) as error:
                raise GenerationError(f"{passage.where}: {error}") from error
            for name, score in zip(passage.texts, found, strict=True):
                if not score.nats:
                    raise GenerationError(f'{passage.where}: "{name}" is one token, which needs a "context" before it.')
                scores.nats[name][way][place] = sum(score.nats)
                scores.tokens[name][place], scores.bytes[name][place] = len(score.nats), score.bytes
        advance(1)
    return scores
