"""`retroflow inspect`: what a model reads for any text, as a page.

Shapes: n tokens of the text, W windows, k neighbours.
"""

from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retroflow.data import Batch
from retroflow.data.batch import NOT_PREDICTED
from retroflow.database.database import Database
from retroflow.evaluation.attribution import SAME, without_effect
from retroflow.evaluation.measuring import evaluating
from retroflow.generation.arguments import unfit
from retroflow.generation.database import RetrievalDatabase
from retroflow.generation.language_model import LanguageModel
from retroflow.generation.opening import open_language_model
from retroflow.model.windows import checked_step, num_windows
from retroflow.pictures.page import write_page
from retroflow.pictures.reading import Lookups, entry, read
from retroflow.pictures.token_classes import LEAST_RUN
from retroflow.planning.placement import Placement
from retroflow.protocols import Int64Array
from retroflow.runs.folder import check_new_file
from retroflow.store.chunk_store import DocumentRecord
from retroflow.version import __version__

MOST_TOKENS = 4096
"""Tokens of a text: all are read at once, and each one has a place in the page."""


def inspect(
    model: LanguageModel | str | PathLike[str],
    text: str,
    *,
    database: RetrievalDatabase | Database | Path | str | None = None,
    num_neighbours: int | None = None,
    retrieval_step: int | None = None,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Measure each token of a text with retrieval and without, and show what was read (docs/report.md).

    Args:
        model: an open one, a run, or a folder of either kind that `retroflow.load` opens.
        text: at least two tokens, up to `MOST_TOKENS`.
        database: an open one, or its folder; None for the model's own.
        num_neighbours: chunks to retrieve for a window; None for as many as in training.
        retrieval_step: tokens between two retrievals; None for those of the run's evaluation.
        output: new file for the page; None writes none.

    Returns:
        The page's data; with a page its size in `bytes`, too.

    Raises:
        ArgumentError: the text or an option does not fit.
        UsageError: the file exists.
        RetroflowError: the model or the database cannot be opened here, or the file cannot be written.
    """
    if output is not None:
        check_new_file(Path(output))
    if not isinstance(model, LanguageModel):
        opened = open_language_model(Path(model), database=database)
    else:
        opened = model if database is None else model.with_database(database)
    data = _inspected(opened, text, num_neighbours, retrieval_step)
    return data if output is None else data | {"bytes": write_page(data, Path(output))}


def _inspected(
    opened: LanguageModel, text: str, num_neighbours: int | None, retrieval_step: int | None
) -> dict[str, Any]:
    m, origin = opened.model.config.chunk_length, opened.origin
    k = origin.num_neighbours if num_neighbours is None else num_neighbours
    step = checked_step(origin.retrieval_step if retrieval_step is None else retrieval_step, m)
    tokens = _tokens_of(opened, text)
    batch, lookups = _looked_up(opened, tokens, k, step)
    device = next(opened.model.parameters()).device
    placement = Placement(device.type, "single", 1, 1, "32-true")
    with evaluating(opened.model):
        reading = read(opened.model, placement, opened.tokenizer, batch, lookups)
    entries = [entry(reading, chunk, m, opened.tokenizer) for chunk in range(-(-len(tokens) // m))]
    of_text = {"document": "", "title": "", "source": ""}
    on, off = (float(nats[1:].mean()) for nats in (reading.on, reading.off))
    database = "none" if opened.database is None else opened.database.name
    remark = ""
    if opened.database is not None and lookups is None:
        remark = f" It is shorter than a chunk of {m} tokens, so nothing was looked up."
    elif lookups is not None and (lookups.ids >= 0).any() and np.abs(reading.on - reading.off).max() <= SAME:
        remark = f" {without_effect(['off'])}"
    return {
        "page_version": 1,
        "kind": "inspect",
        "title": " ".join(text.split())[:80],
        "made": {"retroflow": __version__, "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"},
        "verdict": None,
        "findings": {},
        "tables": [],
        "breakdowns": [],
        "curves": [],
        "inspector": {
            "about": f"{len(tokens):,} tokens: {_compared(on, off, retrieves=lookups is not None)}{remark}",
            "chunk_length": m,
            "least_run": LEAST_RUN,
            "averaged": reading.attention.averaged,
            "adds_up_to_one": reading.attention.adds_up_to_one,
            "retrieval": lookups is not None,
            "of": len(entries),
            "entries": [of_text | one for one in entries],
        },
        "facts": [
            ["model", f"{origin.recipe}, step {origin.step:,}"],
            ["database", database],
            ["neighbours", f"{k}, looked up every {step} tokens" if lookups else "none"],
            ["device", f"{device.type}, float32"],
        ],
        "definitions": {},
        "loss": {"on": on if lookups else None, "off": off, "predicted_tokens": len(tokens) - 1},
    }


def _compared(on: float, off: float, *, retrieves: bool) -> str:
    if not retrieves:
        return f"loss {off:.3f} nats per token without retrieval."
    return f"loss {on:.3f} nats per token with retrieval, {off:.3f} without, gain {off - on:+.3f}."


def _tokens_of(opened: LanguageModel, text: str) -> Int64Array:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise unfit("text", f"{text!r:.60} is not text; give it in UTF-8.")
    tokens = opened.tokenizer.encode(text).ids.astype(np.int64)
    most = min(MOST_TOKENS, opened.model.max_length or MOST_TOKENS)
    if not 2 <= len(tokens) <= most:
        raise unfit("text", f"is {len(tokens):,} tokens long; allowed: 2 to {most:,}. Give another text.")
    return tokens


def _looked_up(opened: LanguageModel, tokens: Int64Array, k: int, step: int) -> tuple[Batch, Lookups | None]:
    """Return the text as a batch of one sequence, and what was found for its windows."""
    m, database = opened.model.config.chunk_length, opened.database
    targets = np.append(tokens[1:], NOT_PREDICTED)
    ends = [m + window * step for window in range(num_windows(len(tokens), m, step))]
    batch = Batch(torch.from_numpy(tokens)[None], torch.from_numpy(targets)[None], None, None, torch.zeros(1))
    if database is None or not ends:
        return batch, None
    found = database.retrieve([tokens[end - m : end].tolist() for end in ends], k)
    ids = np.full((len(ends), k), -1, dtype=np.int64)
    scores = np.full(ids.shape, -np.inf, dtype=np.float32)
    records = {}
    for window, sources in enumerate(found.sources):
        for place, source in enumerate(sources):
            ids[window, place], scores[window, place] = source.chunk, source.score
            records[source.chunk] = DocumentRecord(source.document, source.title, source.source)
    retrieved, mask = torch.from_numpy(found.tokens)[None], torch.from_numpy(found.mask)[None]
    return batch._replace(retrieved=retrieved, retrieved_mask=mask), Lookups(ids, scores, step, records.__getitem__)
