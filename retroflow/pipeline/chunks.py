"""Stage 1: documents -> tokenizer -> chunks.

Documents are tokenised in blocks of about `BLOCK_TEXT_BYTES` of text, in the corpus' order. A block's chunks are a
piece of their own; when all are there they are joined, train and valid apart.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from retroflow.console import Advance, progress, say
from retroflow.corpus.chunking import chunk_document
from retroflow.corpus.tokenizer import TRAIN_BYTES, Tokenizer, load_tokenizer, train_tokenizer
from retroflow.errors import CorpusError
from retroflow.pipeline.fingerprint import Inputs
from retroflow.pipeline.options import DataOptions
from retroflow.pipeline.sharing import Block, Key, Sharing, refuse_to_merge
from retroflow.protocols import Corpus, Document
from retroflow.store.array_file import Array, ArraySpec
from retroflow.store.blocks import keep_folder, kept_folder
from retroflow.store.chunk_store import ChunkStore
from retroflow.store.manifest import FileEntry, Manifest
from retroflow.store.pieces import Pieces, join_pieces, noted_shards, pieces_folder

BLOCK_TEXT_BYTES = 2 << 20
SAID_CHARACTERS = 8_000_000  # the tokenizer is silent for seconds over so much text
FEW_TOKENS = 1000
SPLITS = ("train", "valid")
GROUP = "documents"  # of the pieces


class ChunkStage:
    """The chunks of a corpus in the making; also its own `retroflow.pipeline.sharing.Work`.

    Args:
        partial: the folder to make them in; what an earlier run left there is used.
        folder: what it becomes.
        inputs: what the artifact is named by.
        corpus: read twice if the tokenizer is trained, else once.
        tokenizer: a given tokenizer, None to train one on the training documents.
        data: the recipe's data section.

    Raises:
        CorpusError: there is no training document.
    """

    doing, unit = "cut documents into chunks", "documents"

    def __init__(
        self,
        partial: Path,
        folder: Path,
        inputs: Inputs,
        corpus: Corpus,
        tokenizer: Tokenizer | None,
        data: DataOptions,
    ) -> None:
        self._partial, self._inputs, self._corpus, self._data = partial, inputs, corpus, data
        self._tokenizer, self._files = _keep_tokenizer(partial, corpus, tokenizer, data)
        basis = {"tokenizer": {name: entry.to_json() for name, entry in self._files.items()}}
        self.pieces = pieces_folder(folder, basis)
        self._sources: list[str] = []  # of every block, once the corpus has been read to its end

    @property
    def work(self) -> "ChunkStage":
        """The blocks."""
        return self

    def done(self) -> set[Key]:
        """As in `Work`: a run without shares leaves pieces, too."""
        return set()

    def blocks(self) -> Iterator[Block]:
        """As in `Work`; a block's source is the hash of its documents.

        Raises:
            CorpusError: the corpus changed while it was read.
        """
        sources = []
        for number, block in enumerate(document_blocks(self._corpus.documents())):
            sources.append(_hash_of(block))
            yield Block(Key(GROUP, number), sources[-1], len(block), self._making(block))
        if self._inputs["corpus"] != self._corpus.fingerprint():
            raise CorpusError("corpus: it changed while it was read. Run the command again when the corpus is at rest.")
        say(f"corpus: {self._corpus.counts.summary()}")
        self._sources = sources

    def _making(self, block: list[Document]) -> Callable[[], dict[str, Array]]:
        return lambda: _chunk_block(block, self._tokenizer, self._data.chunk_length)

    def intact(self) -> bool:
        """As in `SharedStage`."""
        return kept_folder(self._partial, "tokenizer") == self._files

    def finish(self, inputs: Inputs, sharing: Sharing) -> Manifest:
        """As in `SharedStage`.

        Raises:
            CorpusError: a split without text, or a corpus that changed while it was read.
            Unfinished: it is a merge, and pieces are missing.
        """
        pieces = Pieces(self.pieces / GROUP)
        if not self._sources or any(pieces.find(*each) is None for each in enumerate(self._sources)):
            self._read_all(pieces, sharing)
        arrays, splits = _join(self._partial, pieces, self._sources, self._tokenizer, self._data.chunk_length)
        info = {
            "chunk_length": self._data.chunk_length,
            "vocabulary_size": self._tokenizer.vocabulary_size,
            "end_of_text": self._tokenizer.end_of_text,
            "tokenizer": self._tokenizer.fingerprint(),
            "splits": splits,
        }
        manifest = Manifest("chunks", inputs, info=info, files=self._files | arrays)
        for split in SPLITS:
            ChunkStore.in_progress(self._partial / split, manifest).check_rows()
        return manifest

    def _read_all(self, pieces: Pieces, sharing: Sharing) -> None:
        missing: dict[Key, int] = {}
        self.pieces.mkdir(parents=True, exist_ok=True)
        with progress(self.doing, None, self.unit) as advance:
            for place, block in enumerate(self.blocks()):
                if pieces.find(place, block.source) is None:
                    if sharing.merge:
                        missing[block.key] = place
                        continue
                    pieces.write(place, block.make(), block.source)
                advance(block.size)
        if missing:
            raise refuse_to_merge("chunks", noted_shards(self.pieces), missing, len(self._sources))


def warn_of_few_tokens(chunks: Manifest) -> None:
    """Print a line if the validation split is so small that its loss is mostly chance."""
    valid = chunks.info["splits"]["valid"]
    if valid["tokens"] < FEW_TOKENS:
        tokens = "1 token" if valid["tokens"] == 1 else f"{valid['tokens']:,} tokens"
        say(
            f"warning: the validation split has only {tokens} (documents: {valid['documents']:,}); a loss over fewer "
            f"than {FEW_TOKENS:,} is mostly chance. Raise corpus.valid_share, or add documents."
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
    partial: Path, corpus: Corpus, tokenizer: Tokenizer | None, data: DataOptions
) -> tuple[Tokenizer, dict[str, FileEntry]]:
    kept = kept_folder(partial, "tokenizer")
    if kept is not None:
        return load_tokenizer(str(partial / "tokenizer")), kept
    if tokenizer is None:
        with progress("train the tokenizer", None, "documents") as advance:
            texts = _train_texts(corpus, advance, data.vocabulary_size)
            tokenizer = train_tokenizer(texts, data.vocabulary_size)
    folder = partial / "tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tokenizer.save(folder)
    entries = keep_folder(partial, "tokenizer")
    # What is loaded in every later run is what tokenises now.
    return load_tokenizer(str(folder)), entries


def _train_texts(corpus: Corpus, advance: Advance, vocabulary_size: int) -> Iterator[str]:
    num_texts = num_characters = 0
    for document in corpus.documents():
        advance(1)
        if document.split == "train":
            num_texts += 1
            num_characters += len(document.text)
            yield document.text
    if num_texts == 0:
        raise _no_text("train")
    if num_characters >= SAID_CHARACTERS:  # the library shows nothing from here on
        say(
            f"tokenizer: {num_texts:,} training documents are read; learning up to {vocabulary_size:,} tokens from "
            f"{min(num_characters, TRAIN_BYTES) / 1e6:,.0f} MB of their text"
        )


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
    for document in block:
        if len(document.text) >= SAID_CHARACTERS:
            size = f"{len(document.text) / 1e6:,.0f} million characters"
            say(f"{document.source}: tokenising one document of {size}; nothing else is shown until it is done")
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
    partial: Path, pieces: Pieces, sources: list[str], tokenizer: Tokenizer, chunk_length: int
) -> tuple[dict[str, FileEntry], dict[str, dict[str, int]]]:
    totals: dict[str, int] = {}
    for piece in range(len(sources)):
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
    entries = join_pieces(partial, pieces, sources, specs, shift)
    return entries, shift.splits


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
            ids, lengths = arrays[f"{split}/document_ids"], arrays[f"{split}/document_offsets"]
            shifted[f"{split}/document_ids"] = ids + (counts["first_document"] + counts["documents"])
            shifted[f"{split}/document_offsets"] = self._offsets(split, lengths)
            if len(ids):
                counts["largest_document"] = max(counts["largest_document"], int(np.bincount(ids).max()))
            counts["documents"] += len(lengths)
            counts["chunks"] += len(ids)
            counts["tokens"] += int(arrays[f"{split}/lengths"].sum(dtype=np.int64))
            counts["text_bytes"] += int(arrays[f"{split}/num_bytes"].sum(dtype=np.int64))
        return shifted

    def _offsets(self, split: str, lengths: Array) -> Array:
        """Where each record ends; for the first documents of a split also where the first record begins."""
        ends = self._record_bytes[split] + np.cumsum(lengths)
        self._record_bytes[split] += int(lengths.sum())
        if self.splits[split]["documents"] == 0 and len(lengths):
            return np.concatenate([[0], ends])
        return ends


def check_a_sequence(chunks: Manifest, sequence_chunks: int) -> None:
    """Refuse to train on a split that is shorter than one sequence.

    Raises:
        CorpusError: it has fewer than `sequence_chunks` chunks.
    """
    count = chunks.info["splits"]["train"]["chunks"]
    if count < sequence_chunks:
        raise CorpusError(
            f"data.sequence_chunks is {sequence_chunks}, and the training split has {count} chunks; lower "
            "data.sequence_chunks, or add documents."
        )


def _no_text(split: str) -> CorpusError:
    if split == "valid":
        return CorpusError(
            "corpus: no validation document with text in it. Raise corpus.valid_share, or give corpus.valid_path."
        )
    return CorpusError("corpus: no training document with text in it. Check what the corpus section points at.")
