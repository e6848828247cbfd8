"""Passages for the questions of a split, found in a database: what a model reads that is trained with data.format qa.

Shapes: N chunks of a split, two of each question, k passages.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from retroflow.corpus.questions import question_of
from retroflow.corpus.tokenizer import Tokenizer, load_tokenizer
from retroflow.database.neighbours import NumberedLike, found_for
from retroflow.database.passages import Passages
from retroflow.database.snapshot import Snapshot, named_version
from retroflow.generation.database import check_fits
from retroflow.pipeline.splits import Splits
from retroflow.protocols import Neighbours
from retroflow.store.chunk_store import ChunkSource


def with_passages(splits: Splits, database: Path | str | Snapshot, k: int) -> Splits:
    """Return splits of questions with the passages that a database finds for them.

    Passages are searched with the question alone, as `retroflow evaluate --tasks` does, and read as it reads them.

    Args:
        splits: chunks of questions and answers (`data.format: qa`).
        database: its folder, `DB@VERSION`, or an open version.
        k: passages of a question.

    Raises:
        GenerationError: the database was made with another tokenizer or chunk length.
        RetroflowError: there is no such database.
    """
    snapshot = database if isinstance(database, Snapshot) else Snapshot.open(*named_version(database))
    identity, tokenizer = snapshot.identity, load_tokenizer(str(splits.tokenizer))
    check_fits(
        snapshot.folder,
        (identity.tokenizer_fingerprint, identity.chunk_length),
        (tokenizer, splits.valid_chunks.chunk_length),
        "retroflow db build DB",
    )
    train = _passages_of(splits.train_chunks, tokenizer, snapshot, k)
    valid = _passages_of(splits.valid_chunks, tokenizer, snapshot, k)
    return replace(
        splits,
        train_neighbours=train.ids,
        validation_neighbours=valid.ids,
        validation_scores=valid.scores,
        other_database=NumberedLike(snapshot.view, splits.train_chunks),
        read=Passages(snapshot.view, tokenizer).read,
    )


def _passages_of(chunks: ChunkSource, tokenizer: Tokenizer, snapshot: Snapshot, k: int) -> Neighbours:
    """Find passages for every question of a split; answers, which are the odd chunks, have none."""
    ids = np.full((len(chunks), k), -1, dtype=np.int64)
    scores = np.full(ids.shape, -np.inf, dtype=np.float32)
    prompts = [[token for token in row if token != chunks.end_of_text] for row in chunks.tokens[::2].tolist()]
    texts = [question_of(prompt) for prompt in tokenizer.decode_batch(prompts)]
    ids[::2], scores[::2] = found_for(snapshot, texts, k)
    return Neighbours(ids, scores)
