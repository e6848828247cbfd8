"""Stage 1: documents -> tokenizer -> chunks.

Documents are tokenised in blocks of about `BLOCK_TEXT_BYTES` of text, in the corpus' order. A block's chunks are a
piece of their own; when all are there they are joined, train and valid apart.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.console import Advance, progress, say
from retroflow.corpus.checked import CheckedCorpus
from retroflow.corpus.chunking import Chunks, chunk_document, chunk_question
from retroflow.corpus.questions import split_at_answer
from retroflow.corpus.tokenizer import TRAIN_BYTES, Tokenizer, grouped, load_tokenizer, train_tokenizer
from retroflow.errors import CorpusError, DamagedDataError, UsageError
from retroflow.pipeline.fingerprint import Inputs
from retroflow.pipeline.options import DataOptions
from retroflow.pipeline.stages import Block
from retroflow.protocols import Document
from retroflow.store.array_file import Array
from retroflow.store.chunk_store import ChunkStore
from retroflow.store.kept import kept_folder
from retroflow.store.manifest import FileEntry, Manifest
from retroflow.store.pieces import Pieces, join_pieces

BLOCK_TEXT_BYTES = 2 << 20
SAID_CHARACTERS = 8_000_000  # the tokenizer needs seconds for so much text
FEW_TOKENS = 1000
SPLITS = ("train", "valid")


class ChunkStage:
    """The chunks of a corpus; a `retroflow.pipeline.stages.Stage`.

    Args:
        inputs: of the artifact's fingerprint.
        corpus: read twice if the tokenizer is trained, else once.
        tokenizer: a given tokenizer, None to train one on the training documents.
        data: the recipe's data section.
    """

    kind, doing, unit = "chunks", "cut documents into chunks", "documents"
    # The corpus has to change then, and it is another artifact.
    final_errors: tuple[type[Exception], ...] = (UsageError, DamagedDataError)

    def __init__(self, inputs: Inputs, corpus: CheckedCorpus, tokenizer: Tokenizer | None, data: DataOptions) -> None:
        self.inputs, self.parents = inputs, dict[str, dict[str, str]]()
        self._corpus, self._given, self._data = corpus, tokenizer, data

    def begin(self, partial: Path) -> dict[str, Any]:
        """As in `Stage`.

        Raises:
            CorpusError: there is no training document.
        """
        self._tokenizer, self._files = _keep_tokenizer(partial, self._corpus, self._given, self._data)
        return {"tokenizer": {name: entry.to_json() for name, entry in self._files.items()}}

    def size(self) -> None:
        """As in `Stage`: how many documents there are is known at their end."""

    def blocks(self) -> Iterator[Block]:
        """As in `Stage`; a block's source is the hash of its documents.

        Raises:
            CorpusError: the corpus changed while it was read.
        """
        for number, documents in enumerate(document_blocks(self._corpus.documents())):
            make = partial(_chunk_block, documents, self._tokenizer, self._data, is_first=number == 0)
            yield Block(len(documents), make, _hash_of(documents))
        if self.inputs["corpus"] != self._corpus.fingerprint():
            raise CorpusError(
                f"The corpus changed while it was being read: {self._corpus.owner} has another fingerprint now. Run "
                "the command again once nothing writes to it."
            )
        say(f"corpus: {self._corpus.counts.summary()}")

    def join(self, folder: Path, pieces: Pieces, sources: Sequence[str]) -> Manifest:
        """As in `Stage`.

        Raises:
            CorpusError: a split without text.
        """
        specs = pieces.specs(len(sources))
        for split in SPLITS:
            if f"{split}/tokens" not in specs or not specs[f"{split}/tokens"].shape[0]:
                raise _no_text(split, self._corpus)
        shift = _Shift(first_valid_document=specs["train/document_offsets"].shape[0] - 1)
        files = self._files | join_pieces(folder, pieces, sources, shift)
        info = {
            "chunk_length": self._data.chunk_length,
            "vocabulary_size": self._tokenizer.vocabulary_size,
            "end_of_text": self._tokenizer.end_of_text,
            "tokenizer": self._tokenizer.fingerprint(),
            "splits": shift.splits,
        }
        manifest = Manifest(self.kind, self.inputs, info=info, files=files)
        for split in SPLITS:
            ChunkStore.in_progress(folder / split, manifest).check_rows()
        return manifest


def warn_of_few_tokens(chunks: Manifest) -> None:
    """Print a line if the validation split is so small that its loss is mostly chance."""
    valid = chunks.info["splits"]["valid"]
    if valid["tokens"] < FEW_TOKENS:
        tokens = "1 token" if valid["tokens"] == 1 else f"{valid['tokens']:,} tokens"
        say(
            f"warning: the validation split has only {tokens} (documents: {valid['documents']:,}); a loss over fewer "
            f"than {FEW_TOKENS:,} is mostly chance. Hold out more of the corpus, or add documents."
        )


def _hash_of(block: list[Document]) -> str:
    whole = hashlib.sha256()
    for document in block:
        parts = (document.id, document.title, document.source, document.split, document.text)
        for part in parts:
            content = part.encode("utf-8", "surrogatepass")
            whole.update(len(content).to_bytes(8, "little"))
            whole.update(content)
    return whole.hexdigest()


def _keep_tokenizer(
    folder: Path, corpus: CheckedCorpus, given: Tokenizer | None, data: DataOptions
) -> tuple[Tokenizer, dict[str, FileEntry]]:
    def save(kept: Path) -> None:
        tokenizer = given
        if tokenizer is None:
            with progress("train the tokenizer", None, "documents") as advance:
                texts = _train_texts(corpus, advance, data.vocabulary_size)
                tokenizer = train_tokenizer(texts, data.vocabulary_size)
        tokenizer.save(kept)

    files = kept_folder(folder, "tokenizer", save)
    # Load it from disk, as later runs do.
    return load_tokenizer(str(folder / "tokenizer")), files


def _train_texts(corpus: CheckedCorpus, advance: Advance, vocabulary_size: int) -> Iterator[str]:
    num_texts = num_characters = 0
    for document in corpus.documents():
        advance(1)
        if document.split == "train":
            num_texts += 1
            num_characters += len(document.text)
            yield document.text
    if num_texts == 0:
        raise _no_text("train", corpus)
    if num_characters >= SAID_CHARACTERS:  # the library shows no progress from here on
        say(
            f"tokenizer: {num_texts:,} training documents read; learning up to {vocabulary_size:,} tokens from "
            f"{min(num_characters, TRAIN_BYTES) / 1e6:,.0f} MB of their text"
        )


def document_blocks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Group documents, in order, until a group has `BLOCK_TEXT_BYTES` characters or more."""
    return grouped(documents, lambda document: len(document.text), BLOCK_TEXT_BYTES)


def _chunk_block(block: list[Document], tokenizer: Tokenizer, data: DataOptions, *, is_first: bool) -> dict[str, Array]:
    """The arrays of one piece; document ids count from its first document, and records have lengths, not offsets.

    The first piece has one length more, 0, so that the sums of all are where each record begins and the last one ends.
    """
    for document in block:
        if len(document.text) >= SAID_CHARACTERS:
            size = f"{len(document.text) / 1e6:,.0f} million characters"
            say(f"{document.source}: tokenising one document of {size}; this shows no progress")
    cut = _cut_questions(block, tokenizer, data) if data.format == "qa" else _cut_documents(block, tokenizer, data)
    tokens_dtype = np.uint16 if tokenizer.vocabulary_size <= 1 << 16 else np.uint32
    nothing = Chunks(np.empty((0, data.chunk_length), np.int32), np.empty(0, np.uint16), np.empty(0, np.uint32))
    arrays: dict[str, Array] = {}
    for split in SPLITS:
        members = [
            (document, chunks)
            for document, chunks in zip(block, cut, strict=True)
            if document.split == split and len(chunks.lengths)
        ]
        records = [json.dumps([document.id, document.title, document.source]).encode() for document, _ in members]
        counts = [len(chunks.lengths) for _, chunks in members]
        tokens, lengths, num_bytes = map(np.concatenate, zip(nothing, *(chunks for _, chunks in members), strict=True))
        arrays |= {
            f"{split}/tokens": tokens.astype(tokens_dtype),
            f"{split}/lengths": lengths,
            f"{split}/num_bytes": num_bytes,
            f"{split}/document_ids": np.repeat(np.arange(len(counts), dtype=np.int64), counts),
            f"{split}/documents": np.frombuffer(b"".join(records), dtype=np.uint8),
            f"{split}/document_offsets": np.array([0] * is_first + [len(each) for each in records], dtype=np.int64),
        }
    return arrays


def _cut_documents(block: list[Document], tokenizer: Tokenizer, data: DataOptions) -> list[Chunks]:
    encoded = tokenizer.encode_batch([document.text for document in block])
    m, end_of_text = data.chunk_length, tokenizer.end_of_text
    return [chunk_document(tokens, chunk_length=m, end_of_text=end_of_text) for tokens in encoded]


def _cut_questions(block: list[Document], tokenizer: Tokenizer, data: DataOptions) -> list[Chunks]:
    parts = [split_at_answer(document.text, document.source) for document in block]
    prompts = tokenizer.encode_batch([prompt for prompt, _ in parts])
    answers = tokenizer.encode_batch([answer for _, answer in parts])
    m, end_of_text = data.chunk_length, tokenizer.end_of_text
    return [
        chunk_question(prompt, answer, chunk_length=m, end_of_text=end_of_text)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


class _Shift:
    """Turns a piece's own document ids and record lengths into those of the whole split."""

    def __init__(self, first_valid_document: int) -> None:
        nothing = dict.fromkeys(("documents", "chunks", "largest_document", "tokens", "text_bytes"), 0)
        first = {"train": 0, "valid": first_valid_document}
        self.splits = {split: {"first_document": first[split], **nothing} for split in SPLITS}
        self._record_bytes = dict.fromkeys(SPLITS, 0)

    def __call__(self, arrays: dict[str, Array]) -> dict[str, Array]:
        shifted = dict(arrays)
        for split, counts in self.splits.items():
            ids = arrays[f"{split}/document_ids"]
            chunks = np.bincount(ids)  # of each document
            offsets = self._record_bytes[split] + np.cumsum(arrays[f"{split}/document_offsets"])
            shifted[f"{split}/document_ids"] = ids + (counts["first_document"] + counts["documents"])
            shifted[f"{split}/document_offsets"] = offsets
            self._record_bytes[split] += len(arrays[f"{split}/documents"])
            counts["largest_document"] = max(counts["largest_document"], int(chunks.max(initial=0)))
            counts["documents"] += len(chunks)
            counts["chunks"] += len(ids)
            counts["tokens"] += int(arrays[f"{split}/lengths"].sum(dtype=np.int64))
            counts["text_bytes"] += int(arrays[f"{split}/num_bytes"].sum(dtype=np.int64))
        return shifted


def check_a_sequence(chunks: Manifest, sequence_chunks: int) -> None:
    """Refuse to train on a split that is shorter than one sequence.

    Raises:
        CorpusError: it has fewer than `sequence_chunks` chunks.
    """
    count = chunks.info["splits"]["train"]["chunks"]
    if count < sequence_chunks:
        raise CorpusError(
            f"data.sequence_chunks is {sequence_chunks}, but the training split has {count} chunks; lower "
            "data.sequence_chunks, or add documents."
        )


def _no_text(split: str, corpus: CheckedCorpus) -> CorpusError:
    if split == "valid":
        keys = " or ".join(f"corpus.{key}" for key in corpus.held_out_by)
        return CorpusError(f"The corpus has no validation document with text. Hold out more by {keys}.")
    return CorpusError("The corpus has no training document with text. Check the paths in the section corpus.")
