"""Neighbours of a few validation chunks as rows of a table, for the tracker.

Shapes: N validation chunks, k neighbours, m tokens of a chunk.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from retroflow.corpus.tokenizer import load_tokenizer
from retroflow.evaluation.perplexity import Measure
from retroflow.evaluation.report import Report
from retroflow.pipeline.splits import Splits
from retroflow.protocols import MakeExamples, NeighbourExample
from retroflow.store.chunk_store import ChunkSource

_ReadText = Callable[[ChunkSource, int], str]


def neighbour_examples(splits: Splits, report: Report | None = None) -> MakeExamples:
    """Make the function that picks chunks evenly spread over the validation split and lists all their neighbours.

    Args:
        splits: chunks and neighbours.
        report: has each chunk's loss with and without retrieval; None before the evaluation.
    """

    def make(most_rows: int, with_text: bool) -> Sequence[NeighbourExample]:
        num_chunks, k = splits.validation_neighbours.shape
        wanted = min(num_chunks, most_rows // k)
        chunks = np.unique(np.linspace(0, num_chunks - 1, wanted).astype(np.int64)).tolist()
        read = _text_reader(splits) if with_text else None
        return [example for chunk in chunks for example in _of_chunk(splits, chunk, report, read)]

    return make


def _of_chunk(splits: Splits, chunk: int, report: Report | None, read: _ReadText | None) -> list[NeighbourExample]:
    valid, database = splits.valid_chunks, splits.database
    scores = splits.validation_scores
    measures = report.measures if report is not None else {}
    examples = []
    for rank, neighbour in enumerate(splits.validation_neighbours[chunk].tolist()):
        example = NeighbourExample(
            chunk=chunk,
            chunk_source=_source(valid, chunk),
            rank=rank,
            neighbour=neighbour,
            neighbour_source=_source(database, neighbour) if neighbour >= 0 else "",
            score=float(scores[chunk, rank]) if scores is not None else float("nan"),
            loss_on=_loss(measures.get("on"), chunk),
            loss_off=_loss(measures.get("off"), chunk),
        )
        if read is not None:
            found = neighbour >= 0
            example = replace(
                example,
                chunk_text=read(valid, chunk),
                neighbour_text=read(database, neighbour) if found else "",
                continuation_text=read(database, neighbour + 1) if found and _continues(database, neighbour) else "",
            )
        examples.append(example)
    return examples


def _loss(measure: Measure | None, chunk: int) -> float | None:
    if measure is None or measure.chunk_tokens[chunk] == 0:
        return None
    return float(measure.chunk_nats[chunk] / measure.chunk_tokens[chunk])


def _source(chunks: ChunkSource, chunk: int) -> str:
    return chunks.document(int(chunks.document_ids[chunk])).source


def _continues(chunks: ChunkSource, chunk: int) -> bool:
    after = chunk + 1
    return after < len(chunks) and bool(chunks.document_ids[after] == chunks.document_ids[chunk])


def _text_reader(splits: Splits) -> _ReadText:
    tokenizer = load_tokenizer(str(splits.tokenizer))

    def read(chunks: ChunkSource, chunk: int) -> str:
        return tokenizer.decode(chunks.tokens[chunk][: int(chunks.lengths[chunk])])

    return read
