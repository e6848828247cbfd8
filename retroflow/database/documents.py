"""Documents that enter a database: from a corpus source, a path or Python objects, as arrays of a segment.

Every document is embedded in calls of its own. The rounding of a neural embedder depends on what it computes together,
so a vector must not depend on the documents that happened to come along.

Shapes: c chunks of a block of documents, m tokens of a chunk, D embedding width.
"""

import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.components import CORPORA, create_corpus, recipe_schema
from retroflow.corpus.chunking import chunk_document
from retroflow.corpus.tokenizer import grouped
from retroflow.database.identity import Identity
from retroflow.errors import CorpusError, UsageError
from retroflow.pipeline.embeddings import half_precision
from retroflow.protocols import Document
from retroflow.recipe.loading import load_options
from retroflow.recipe.resolved import as_override
from retroflow.store.array_file import Array
from retroflow.store.segment import StoredDocument

BLOCK_TEXT_BYTES = 1 << 20
TEXTS_AT_ONCE = 1024

Source = str | Path | Iterable[Document | Mapping[str, str]]


def sha256_of(text: str) -> str:
    """Return the hash by which texts are compared."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def corpus_documents(section: Mapping[str, Any]) -> Iterator[Document]:
    """Yield the documents of a corpus that are not held out for validation.

    Raises:
        CorpusError: two of them have one id.
        RetroflowError: the corpus cannot be read.
    """
    return distinct_ids(each for each in create_corpus(section).documents() if each.split == "train")


def distinct_ids(documents: Iterable[Document]) -> Iterator[Document]:
    """Pass documents on; an id names one document.

    Raises:
        CorpusError: two have one id.
    """
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise CorpusError(
                f'the document id "{document.id}" is there twice (again at {document.source}). Give every document an '
                "id of its own; corpus.id_key names the key of another one."
            )
        seen.add(document.id)
        yield document


def read_source(
    source: Source | None, section: Mapping[str, Any] | None, words: Sequence[str] = ()
) -> Iterator[Document]:
    """Read documents.

    Args:
        source: a path, or documents; a mapping has "text", "id", and perhaps "title" and "source"; None for what the
            section or the words name.
        section: the corpus section that the database was built with, whose options serve for a path, too.
        words: options of the corpus, such as "corpus.include=**/*.md".

    Raises:
        UsageError: an option or a document is wrong.
        RetroflowError: as `corpus_documents`.
    """
    if source is None or isinstance(source, str | Path):
        return corpus_documents(corpus_section(None if source is None else str(source), section, words))
    return distinct_ids(_document(one) for one in source)


def corpus_section(path: str | None, section: Mapping[str, Any] | None, words: Sequence[str] = ()) -> dict[str, Any]:
    """Return the corpus section that reads a path; nothing is held out unless a word says so.

    Raises:
        UsageError: neither a path nor a word says what to read, or an option is wrong.
    """
    given = dict(word.removeprefix("corpus.").split("=", 1) for word in words if "=" in word)
    name = given.pop("name", None) or _name_for(path, section)
    kept = dict(section) if section is not None and section["name"] == name else {}
    if path is not None or "path" in given:  # other documents, which are not divided as those were
        kept = {key: value for key, value in kept.items() if not key.startswith("valid_")}
        kept |= {} if path is None else {"path": path}
    options = [f"{key}={as_override(value)}" for key, value in kept.items() if key != "name" and value is not None]
    options += [f"{key}={value}" for key, value in given.items()]
    found = {"name": name, **load_options(recipe_schema().slots["corpus"], name, options)}
    return found if any(key.startswith("valid_") for key in {*kept, *given}) else holding_nothing_out(found)


def holding_nothing_out(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a corpus section with all documents in the database, and the path from anywhere."""
    found = dict(section)
    if "valid_share" in found:
        found["valid_share"] = 0.0
    if isinstance(path := found.get("path"), str) and (os.path.exists(path) or glob.glob(path)):
        found["path"] = os.path.abspath(path)
    return found


def _name_for(path: str | None, section: Mapping[str, Any] | None) -> str:
    if path is None and section is None:
        raise UsageError("documents: nothing is given to read; give a path, or corpus.name and its options.")
    for name, endings in {"jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"), "parquet": (".parquet",)}.items():
        if path is not None and path.endswith(endings):
            return name
    has_path = section is not None and "path" in section and section["name"] in CORPORA.names()
    return str(section["name"]) if section is not None and (path is None or has_path) else "text"


def _document(one: Document | Mapping[str, str]) -> Document:
    if isinstance(one, Mapping):
        missing = [key for key in ("id", "text") if not isinstance(one.get(key), str)]
        if missing:
            raise UsageError(f'documents: a mapping lacks "{missing[0]}" as text; it has {", ".join(map(str, one))}.')
        id = one["id"]
        one = Document(id, one.get("title") or id, one["text"], one.get("source") or id, "train")
    if not isinstance(one, Document):
        raise UsageError(f"documents: a {type(one).__name__} is among them; allowed: Document, or a mapping.")
    if not one.id or not one.text.strip():
        raise UsageError(f'documents: "{one.id}" has no {"text" if one.id else "id"}; every document needs both.')
    return one


def document_arrays(documents: Sequence[Document], identity: Identity) -> dict[str, Array]:
    """Cut documents into chunks and embed them: a block for `write_segment`, empty if they hold no token."""
    tokenizer, length = identity.tokenizer, identity.chunk_length
    encoded = tokenizer.encode_batch([document.text for document in documents])
    cut = [chunk_document(each, chunk_length=length, end_of_text=tokenizer.end_of_text) for each in encoded]
    kept = [(document, chunks) for document, chunks in zip(documents, cut, strict=True) if len(chunks.lengths)]
    if not kept:
        return {}
    records = [
        StoredDocument(document.id, document.title, document.source, sha256_of(document.text)).to_bytes()
        for document, _ in kept
    ]
    dtype = np.uint16 if tokenizer.vocabulary_size <= 1 << 16 else np.uint32
    arrays: dict[str, Array] = {
        "tokens": np.concatenate([chunks.tokens for _, chunks in kept]).astype(dtype),
        "lengths": np.concatenate([chunks.lengths for _, chunks in kept]),
        "num_bytes": np.concatenate([chunks.num_bytes for _, chunks in kept]),
        "starts": np.array([len(chunks.lengths) for _, chunks in kept], dtype=np.int64),
        "records": np.frombuffer(b"".join(records), dtype=np.uint8),
        "record_offsets": np.array([len(record) for record in records], dtype=np.int64),
    }
    if identity.embedder is not None:
        arrays["embeddings"] = np.concatenate(
            [_embed(identity, document.id, arrays["tokens"], *bounds) for document, bounds in _bounds(kept, arrays)]
        )
    return arrays


def _bounds(kept: Sequence[tuple[Document, Any]], arrays: Mapping[str, Array]) -> Iterator[tuple[Document, Any]]:
    ends = np.cumsum(arrays["starts"])
    for (document, chunks), end in zip(kept, ends.tolist(), strict=True):
        yield document, (arrays["lengths"], end - len(chunks.lengths), end)


def _embed(identity: Identity, id: str, tokens: Array, lengths: Array, start: int, end: int) -> Array:
    """Embed the chunks start to end, which are one document."""
    assert identity.embedder is not None
    parts = []
    for first in range(start, end, TEXTS_AT_ONCE):
        rows = range(first, min(first + TEXTS_AT_ONCE, end))
        texts = identity.tokenizer.decode_batch([tokens[row][: lengths[row]] for row in rows])
        parts.append(half_precision(identity.embedder.embed(texts), identity.embedder.owner, id, first - start))
    return np.concatenate(parts)


def document_blocks(
    documents: Iterable[Document], identity: Identity, advance: Callable[[int], None]
) -> Iterator[dict[str, Array]]:
    """Yield blocks of documents for `write_segment`.

    Args:
        documents: all of them.
        identity: of the database.
        advance: called with the number of documents of every block.
    """
    for block in grouped(documents, lambda document: len(document.text), BLOCK_TEXT_BYTES):
        if arrays := document_arrays(block, identity):
            yield arrays
        advance(len(block))
