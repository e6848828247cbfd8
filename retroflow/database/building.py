"""A new database: from documents, from prepared artifacts, or like another database."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retroflow.components import create_embedder
from retroflow.console import Advance, progress
from retroflow.corpus.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from retroflow.database.changes import compare
from retroflow.database.commit import Writer
from retroflow.database.documents import Source, corpus_documents, read_source, sha256_of
from retroflow.database.identity import Identity, write_identity
from retroflow.database.lock import LOCK_FILE, OWNER_FILE, disk_errors, writing
from retroflow.database.snapshot import Snapshot, is_database
from retroflow.embedding.checked import CheckedEmbedder
from retroflow.errors import UsageError
from retroflow.pipeline.options import TRAINED
from retroflow.pipeline.recipe_retriever import RecipeRetriever
from retroflow.protocols import Document
from retroflow.store.array_file import Array
from retroflow.store.artifact import open_artifact
from retroflow.store.atomic import check_unused
from retroflow.store.chunk_store import ChunkStore
from retroflow.store.embedding_store import EmbeddingStore
from retroflow.store.manifest import PARTS_FOLDER
from retroflow.store.segment import StoredDocument
from retroflow.store.versions import CURRENT_FILE, STATES_FOLDER, VERSIONS_FOLDER, Part, Version

COPIED_CHUNKS = 4096
_OWN_FILES = (LOCK_FILE, OWNER_FILE, CURRENT_FILE)
_OWN_NAMES = {PARTS_FOLDER, STATES_FOLDER, VERSIONS_FOLDER, *_OWN_FILES}


@dataclass(frozen=True)
class Plan:
    """What a new database is made with.

    Attributes:
        sections: `corpus` (or None), `embedder` and `retriever`, as in a recipe.
        tokenizer: "train", a folder, a name, or a loaded one.
        chunk_length: tokens of a chunk.
        vocabulary_size: of a tokenizer that is trained.
        embedder_state: folder that the embedder loads what it has learned from; None leaves it as it is made.
    """

    sections: Mapping[str, Any]
    tokenizer: str | Tokenizer = TRAINED
    chunk_length: int = 64
    vocabulary_size: int = 8192
    embedder_state: Path | None = None

    @classmethod
    def like(cls, identity: Identity) -> "Plan":
        """Return the plan of a database whose vectors and tokens mean what those of another one do."""
        state = identity.folder / "embedder"
        return cls(identity.sections, identity.tokenizer, identity.chunk_length, embedder_state=state)

    @classmethod
    def of_artifacts(cls, chunks: Path, embeddings: Path | None, sections: Mapping[str, Any]) -> "Plan":
        """Return the plan of prepared artifacts.

        Args:
            chunks, embeddings: folders of artifacts; embeddings None if the retriever reads texts only.
            sections: as of a `Plan`.
        """
        length = open_artifact(chunks, kind="chunks").info["chunk_length"]
        state = None if embeddings is None else embeddings / "embedder"
        return cls(sections, load_tokenizer(str(chunks / "tokenizer")), length, embedder_state=state)

    def make_embedder(self) -> CheckedEmbedder | None:
        """Create the embedder, None if the retriever reads no vectors.

        It is not fitted to the documents: they will change, and vectors must not depend on which came first.
        """
        if not RecipeRetriever(self.sections["retriever"]).reads_vectors:
            return None
        embedder = create_embedder(self.sections["embedder"])
        if self.embedder_state is not None:
            embedder.load(self.embedder_state)
        return embedder


def build(folder: Path, plan: Plan, source: Source | None) -> None:
    """Make a database from documents.

    Args:
        folder: new or empty, or what is left of a building that did not end.
        plan: tokenizer, embedder and retriever.
        source: the documents; None for those of the corpus section, or for an empty database.

    Raises:
        UsageError: the folder is in use, or there is nothing to train a tokenizer on.
        RetroflowError: the documents cannot be read, a component cannot be used, or the disk cannot be written.
    """
    section = plan.sections["corpus"]
    given: Source | None = source if source is None or isinstance(source, str | Path) else list(source)

    def documents() -> Iterable[Document]:
        if given is None:
            return () if section is None else corpus_documents(section)
        return read_source(given, section)

    embedder = plan.make_embedder()
    with _new(folder):
        tokenizer = _tokenizer(plan, documents)
        identity = write_identity(folder, plan.sections, tokenizer, plan.chunk_length, embedder)
        empty = _empty(folder, identity)
        changes = compare(empty, documents(), lambda document, is_known: None)
        counts = {"added": len(changes.added)}
        Writer(empty, "build").commit([], changes.blocks(documents()), counts).close()


def build_from_artifacts(folder: Path, chunks: Path, embeddings: Path | None, sections: Mapping[str, Any]) -> None:
    """Make a database of prepared artifacts; nothing is cut or embedded again.

    Args:
        folder: as for `build`.
        chunks: an artifact folder; its training split becomes the documents.
        embeddings: an artifact folder, None if the retriever reads texts only.
        sections: `corpus` (or None), `embedder` and `retriever`, as in a recipe.

    Raises:
        UsageError: the folder is in use, or two documents have one id.
        RetroflowError: as `build`.
    """
    store = ChunkStore.open(chunks / "train")
    vectors = None if embeddings is None else EmbeddingStore.open(embeddings / "train")
    plan = Plan.of_artifacts(chunks, embeddings, sections)
    tokenizer, embedder = _tokenizer(plan, list), plan.make_embedder()
    with _new(folder):
        identity = write_identity(folder, sections, tokenizer, store.chunk_length, embedder)
        with progress("copy documents", store.num_documents, "documents") as advance:
            blocks = _copied(store, vectors, tokenizer, advance)
            Writer(_empty(folder, identity), "build").commit([], blocks, {"added": store.num_documents}).close()


@contextmanager
def _new(folder: Path) -> Iterator[None]:
    """Hold the lock of a new database, without what a building that was killed has left."""
    if is_database(folder):
        raise UsageError(f'"{folder}" is a database already; `add`, `replace` and `sync` change it.')
    with disk_errors(folder):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else [""]
        if not all(name in _OWN_NAMES or (name.startswith(_OWN_FILES) and name.endswith(".tmp")) for name in names):
            check_unused(folder)
            folder.mkdir(parents=True, exist_ok=True)
    with writing(folder, "build"):
        _discard(folder)
        try:
            yield
        except BaseException:
            with suppress(OSError):
                _discard(folder)
            raise


def _discard(folder: Path) -> None:
    for name in (PARTS_FOLDER, STATES_FOLDER, VERSIONS_FOLDER):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    for path in folder.glob("*.tmp"):
        path.unlink()


def _tokenizer(plan: Plan, documents: Callable[[], Iterable[Document]]) -> Tokenizer:
    if isinstance(plan.tokenizer, Tokenizer):
        return plan.tokenizer
    if plan.tokenizer != TRAINED:
        return load_tokenizer(plan.tokenizer)
    count = 0

    def texts() -> Iterator[str]:
        nonlocal count
        for document in documents():
            count += 1
            advance(1)
            yield document.text

    with progress("train the tokenizer", None, "documents") as advance:
        tokenizer = train_tokenizer(texts(), plan.vocabulary_size)
    if not count:
        raise UsageError(
            "tokenizer: without documents none can be trained; give the tokenizer of the model that will read the "
            "database (a run folder has one), or documents."
        )
    return tokenizer


def _empty(folder: Path, identity: Identity) -> Snapshot:
    part = Part(identity.folder.name, identity.manifest.content)
    return Snapshot(folder, Version(0, 0.0, "build", {}, f"{0:064x}", part))


def _copied(
    store: ChunkStore, vectors: EmbeddingStore | None, tokenizer: Tokenizer, advance: Advance
) -> Iterator[dict[str, Array]]:
    """Blocks of whole documents of a split, in order."""
    ends = np.searchsorted(store.document_ids, np.arange(store.num_documents), side="right")
    starts = np.concatenate([[0], ends[:-1]])
    seen: set[str] = set()
    first = 0
    while first < len(ends):
        last = max(first + 1, int(np.searchsorted(ends, starts[first] + COPIED_CHUNKS, side="right")))
        rows = slice(int(starts[first]), int(ends[last - 1]))
        tokens, lengths = np.asarray(store.tokens[rows]), np.asarray(store.lengths[rows])
        texts = tokenizer.decode_batch(
            [
                np.concatenate([tokens[row - rows.start][: lengths[row - rows.start]] for row in range(start, end)])
                for start, end in zip(starts[first:last].tolist(), ends[first:last].tolist(), strict=True)
            ]
        )
        records = []
        for document, text in zip(range(first, last), texts, strict=True):
            record = store.document(document)
            if record.id in seen:
                raise UsageError(f'the document id "{record.id}" is there twice; a database needs distinct ids.')
            seen.add(record.id)
            records.append(StoredDocument(record.id, record.title, record.source, sha256_of(text)).to_bytes())
        arrays: dict[str, Array] = {
            "tokens": tokens,
            "lengths": lengths,
            "num_bytes": np.asarray(store.num_bytes[rows]),
            "starts": ends[first:last] - starts[first:last],
            "records": np.frombuffer(b"".join(records), dtype=np.uint8),
            "record_offsets": np.array([len(record) for record in records], dtype=np.int64),
        }
        if vectors is not None:
            arrays["embeddings"] = vectors[rows]
        yield arrays
        advance(last - first)
        first = last
