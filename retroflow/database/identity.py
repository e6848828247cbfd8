"""What all versions of a database share: tokenizer, length of a chunk, embedder and retriever."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from retroflow.components import create_embedder, create_retriever, owner_of_retriever
from retroflow.corpus.tokenizer import Tokenizer, load_tokenizer
from retroflow.embedding.checked import CheckedEmbedder
from retroflow.errors import UsageError
from retroflow.protocols import Capabilities
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.store.artifact import commit, open_artifact
from retroflow.store.atomic import sync_tree
from retroflow.store.hashing import describe_tree
from retroflow.store.manifest import PARTS_FOLDER, Manifest, damaged
from retroflow.store.versions import Part, part_folder

IDENTITY = "identity"


@dataclass(frozen=True)
class Identity:
    """The identity of a database.

    Attributes:
        folder, manifest: its artifact.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, database: Path, part: Part) -> "Identity":
        """Open it, checked.

        Raises:
            DamagedDataError: it is missing, or differs from what was written.
        """
        folder = part_folder(database, part)
        if not folder.is_dir():
            raise damaged(folder, "the folder is missing", folder)
        manifest = open_artifact(folder, kind=IDENTITY)
        if manifest.content != part.content:
            raise damaged(folder / "manifest.json", "it is the identity of another database", folder)
        return cls(folder, manifest)

    @property
    def database(self) -> str:
        """A name that no other database has; copies have the same."""
        return str(self.manifest.inputs["database"])

    @property
    def chunk_length(self) -> int:
        """Tokens of a chunk, m."""
        return int(self.manifest.info["chunk_length"])

    @property
    def end_of_text(self) -> int:
        """The padding token."""
        return int(self.manifest.info["end_of_text"])

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest token."""
        return int(self.manifest.info["vocabulary_size"])

    @property
    def tokenizer_fingerprint(self) -> str:
        """As `Tokenizer.fingerprint`."""
        return str(self.manifest.info["tokenizer"])

    @property
    def dimension(self) -> int | None:
        """Width of the embeddings, None if there are none."""
        found: int | None = self.manifest.info["dimension"]
        return found

    @property
    def sections(self) -> dict[str, Any]:
        """The sections `corpus` (or None), `embedder` and `retriever` of a recipe that it was built with."""
        return dict(self.manifest.component)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return load_tokenizer(str(self.folder / "tokenizer"))

    @cached_property
    def embedder(self) -> CheckedEmbedder | None:
        """Its embedder, None if the retriever reads texts only.

        Raises:
            UsageError: the embedder of that name is another one here.
            RetroflowError: it cannot be created here.
        """
        if self.dimension is None:
            return None
        section, stated = self.sections["embedder"], self.manifest.info["embedder"]
        embedder = create_embedder(section)
        if embedder.fingerprint() != stated:
            raise UsageError(
                f'"{self.folder.parents[1]}": the embedder "{section["name"]}" as it is here (fingerprint '
                f"{embedder.fingerprint()}) is not the one that made its vectors ({stated}). Install that model or "
                "version again, or build the database anew."
            )
        embedder.load(self.folder / "embedder")
        return embedder

    def new_retriever(self) -> CheckedRetriever:
        """Create its retriever, without an index."""
        return create_retriever(self.sections["retriever"])

    @cached_property
    def capabilities(self) -> Capabilities:
        """Those of its retriever."""
        return self.new_retriever().capabilities

    @property
    def searches_segments(self) -> bool:
        """Whether scores of separate indexes can be compared: those of vectors can, a retriever's own cannot."""
        return self.capabilities.metric != "own"


def write_identity(
    database: Path,
    sections: Mapping[str, Any],
    tokenizer: Tokenizer,
    chunk_length: int,
    embedder: CheckedEmbedder | None,
) -> Identity:
    """Write the identity of a new database.

    Args:
        database: its folder.
        sections: `corpus` (or None), `embedder` and `retriever`, as in a recipe.
        tokenizer: cuts texts into tokens.
        chunk_length: m.
        embedder: ready to embed; None if the retriever reads texts only.

    Raises:
        RetroflowError: a component cannot be created, or the retriever cannot index such vectors.
    """
    retriever = create_retriever(sections["retriever"])
    if embedder is not None:
        retriever.check_vectors(None, embedder.dimension)
    inputs = {"database": uuid.uuid4().hex}
    info = {
        "chunk_length": chunk_length,
        "vocabulary_size": tokenizer.vocabulary_size,
        "end_of_text": tokenizer.end_of_text,
        "tokenizer": tokenizer.fingerprint(),
        "embedder": None if embedder is None else embedder.fingerprint(),
        "dimension": None if embedder is None else embedder.dimension,
        "retriever": owner_of_retriever(sections["retriever"]["name"]),
    }
    plan = Manifest(IDENTITY, inputs, info=info, component=dict(sections))
    folder = database / PARTS_FOLDER / plan.name
    partial = folder.with_name(f"{folder.name}.partial")
    (partial / "tokenizer").mkdir(parents=True)
    tokenizer.save(partial / "tokenizer")
    (partial / "embedder").mkdir()
    if embedder is not None:
        embedder.save(partial / "embedder")
    sync_tree(partial)
    files = {**describe_tree(partial / "tokenizer", "tokenizer"), **describe_tree(partial / "embedder", "embedder")}
    manifest = Manifest(IDENTITY, inputs, info=info, files=files, component=dict(sections))
    commit(partial, manifest, folder)
    return Identity(folder, manifest)
