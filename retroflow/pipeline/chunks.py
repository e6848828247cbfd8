"""Stage 1: documents -> tokenizer -> chunks.

Documents are tokenised in blocks of about `BLOCK_TEXT_BYTES` of text, in the corpus' order. A block's chunks are a
piece of their own; when all are there they are joined, train and valid apart.
"""

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.corpus.chunking import chunk_document
from retroflow.corpus.documents import Corpus, Document
from retroflow.corpus.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from retroflow.errors import CorpusError
from retroflow.pipeline.fingerprint import Inputs
from retroflow.pipeline.options import DataOptions
from retroflow.pipeline.progress import progress, say
from retroflow.store.array_file import Array, ArraySpec
from retroflow.store.blocks import keep_folder, kept_folder
from retroflow.store.manifest import FileEntry, Manifest
from retroflow.store.pieces import Pieces, join_pieces

BLOCK_TEXT_BYTES = 2 << 20
SPLITS = ("train", "valid")


def make_chunks(
    partial: Path, inputs: Inputs, corpus: Corpus, tokenizer: Tokenizer | None, data: DataOptions
) -> Manifest:
    """Make the chunks of a corpus.

    Args:
        partial: the folder to make them in; what an earlier run left there is used.
        inputs: what the artifact is named by.
        corpus: read twice if the tokenizer is trained, else once.
        tokenizer: a given tokenizer, None to train one on the training documents.
        data: the recipe's data section.

    Raises:
        CorpusError: a split without text, or a corpus that changed while it was read.
    """
    tokenizer, files = _keep_tokenizer(partial, corpus, tokenizer, data)
    pieces = Pieces(partial)
    num_pieces = _make_pieces(pieces, corpus, tokenizer, data.chunk_length)
    if inputs["corpus"] != corpus.fingerprint():
        raise CorpusError("corpus: it changed while it was read. Run the command again when the corpus is at rest.")
    say(f"corpus: {corpus.counts.summary()}")
    arrays, splits = _join(partial, pieces, num_pieces, tokenizer, data.chunk_length)
    info = {
        "chunk_length": data.chunk_length,
        "vocabulary_size": tokenizer.vocabulary_size,
        "end_of_text": tokenizer.end_of_text,
        "tokenizer": tokenizer.fingerprint(),
        "splits": splits,
    }
    return Manifest("chunks", inputs, info=info, files=files | arrays)


def _keep_tokenizer(
    partial: Path, corpus: Corpus, tokenizer: Tokenizer | None, data: DataOptions
) -> tuple[Tokenizer, dict[str, FileEntry]]:
    kept = kept_folder(partial, "tokenizer")
    if kept is not None:
        return load_tokenizer(str(partial / "tokenizer")), kept
    if tokenizer is None:
        with progress("train the tokenizer", None, "documents") as advance:
            tokenizer = train_tokenizer(_train_texts(corpus, advance), data.vocabulary_size)
    folder = partial / "tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tokenizer.save(folder)
    entries = keep_folder(partial, "tokenizer")
    # What is loaded in every later run is what tokenises now.
    return load_tokenizer(str(folder)), entries


def _train_texts(corpus: Corpus, advance: Any) -> Iterator[str]:
    num_texts = 0
    for document in corpus.documents():
        advance(1)
        if document.split == "train":
            num_texts += 1
            yield document.text
    if num_texts == 0:
        raise _no_text("train")


def _make_pieces(pieces: Pieces, corpus: Corpus, tokenizer: Tokenizer, chunk_length: int) -> int:
    num_pieces = 0
    with progress("cut documents into chunks", None, "documents") as advance:
        for num_pieces, block in enumerate(document_blocks(corpus.documents()), start=1):
            piece = num_pieces - 1
            if not pieces.has(piece):
                pieces.write(piece, _chunk_block(block, tokenizer, chunk_length))
            advance(len(block))
    return num_pieces


def document_blocks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Group documents, in order, until a group has `BLOCK_TEXT_BYTES` characters or more."""
    block: list[Document] = []
    size = 0
    for document in documents:
        block.append(document)
        size += len(document.text)
        if size >= BLOCK_TEXT_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _chunk_block(block: list[Document], tokenizer: Tokenizer, chunk_length: int) -> dict[str, Array]:
    """The arrays of one piece; document ids and record lengths count from the piece's first document."""
    arrays: dict[str, Array] = {}
    encoded = tokenizer.encode_batch([document.text for document in block])
    for split in SPLITS:
        members = [
            (document, tokens) for document, tokens in zip(block, encoded, strict=True) if document.split == split
        ]
        members = [(document, tokens) for document, tokens in members if len(tokens.ids)]
        chunks = [
            chunk_document(tokens, chunk_length=chunk_length, end_of_text=tokenizer.end_of_text)
            for _, tokens in members
        ]
        records = [json.dumps([document.id, document.title, document.source]).encode() for document, _ in members]
        counts = [len(each.lengths) for each in chunks]
        empty = np.empty((0, chunk_length), dtype=np.int32)
        arrays |= {
            f"{split}/tokens": np.concatenate([empty, *(each.tokens for each in chunks)]),
            f"{split}/lengths": np.concatenate([np.empty(0, np.uint16), *(each.lengths for each in chunks)]),
            f"{split}/num_bytes": np.concatenate([np.empty(0, np.uint32), *(each.num_bytes for each in chunks)]),
            f"{split}/document_ids": np.repeat(np.arange(len(counts), dtype=np.int64), counts),
            f"{split}/documents": np.frombuffer(b"".join(records), dtype=np.uint8),
            f"{split}/document_offsets": np.array([len(record) for record in records], dtype=np.int64),
        }
    return arrays


def _join(
    partial: Path, pieces: Pieces, num_pieces: int, tokenizer: Tokenizer, chunk_length: int
) -> tuple[dict[str, FileEntry], dict[str, dict[str, int]]]:
    totals: dict[str, int] = {}
    for piece in range(num_pieces):
        for name, shape in pieces.shapes(piece).items():
            totals[name] = totals.get(name, 0) + shape[0]
    for split in SPLITS:
        if not totals.get(f"{split}/tokens"):
            raise _no_text(split)
    dtypes = {
        "tokens": np.uint16 if tokenizer.vocabulary_size <= 1 << 16 else np.uint32,
        "lengths": np.uint16,
        "num_bytes": np.uint32,
        "document_ids": np.int64,
        "documents": np.uint8,
        "document_offsets": np.int64,
    }
    specs = {}
    for split, (name, dtype) in itertools.product(SPLITS, dtypes.items()):
        rows = totals[f"{split}/{name}"] + (name == "document_offsets")  # one more: where the last one ends
        shape = (rows, chunk_length) if name == "tokens" else (rows,)
        specs[f"{split}/{name}"] = ArraySpec(f"{split}/{name}.npy", np.dtype(dtype), shape)
    shift = _Shift(first_valid_document=totals["train/document_offsets"])
    entries = join_pieces(partial, pieces, num_pieces, specs, shift)
    return entries, shift.splits


class _Shift:
    """Turns a piece's own document ids and record lengths into those of the whole split."""

    def __init__(self, first_valid_document: int) -> None:
        first = {"train": 0, "valid": first_valid_document}
        self.splits = {
            split: {"first_document": first[split], "documents": 0, "chunks": 0, "largest_document": 0, "text_bytes": 0}
            for split in SPLITS
        }
        self._record_bytes = dict.fromkeys(SPLITS, 0)

    def __call__(self, name: str, rows: Array) -> Array:
        split, _, array = name.partition("/")
        counts = self.splits[split]
        if array == "document_ids":
            if len(rows):
                counts["largest_document"] = max(counts["largest_document"], int(np.bincount(rows).max()))
            counts["chunks"] += len(rows)
            return rows + (counts["first_document"] + counts["documents"])
        if array == "num_bytes":
            counts["text_bytes"] += int(rows.sum(dtype=np.int64))
        if array == "document_offsets":  # comes after the ids of the same piece
            first_piece = counts["documents"] == 0
            counts["documents"] += len(rows)
            ends = np.cumsum(rows) + self._record_bytes[split]
            self._record_bytes[split] += int(rows.sum())
            return np.concatenate([np.zeros(int(first_piece and len(rows) > 0), np.int64), ends])
        return rows


def _no_text(split: str) -> CorpusError:
    if split == "valid":
        return CorpusError(
            "corpus: no validation document with text in it. Raise corpus.valid_share, or give corpus.valid_path."
        )
    return CorpusError("corpus: no training document with text in it. Check what the corpus section points at.")
