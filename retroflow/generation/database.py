"""A retrieval database that is searched with new text: window -> text -> embedding -> neighbours.

A query takes the path that the keys took: its tokens are decoded to text by the same tokenizer. If the retriever reads
vectors, the text is embedded by the same embedder with the state that was saved beside the keys, and rounded to
float16. The text of a stored chunk therefore finds that chunk at distance 0.

Shapes: q queries, k neighbours, m tokens of a chunk, r = 2m tokens of a neighbour with its continuation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from retroflow.components import create_embedder, create_retriever
from retroflow.corpus.tokenizer import Tokenizer, load_tokenizer
from retroflow.data.retrieved import read_retrieved
from retroflow.database.database import Database
from retroflow.database.searching import Search
from retroflow.database.snapshot import Snapshot, is_database
from retroflow.embedding.checked import CheckedEmbedder
from retroflow.errors import DamagedDataError
from retroflow.generation.arguments import unfit
from retroflow.generation.former_owner import naming_former_owner, owner_of_index
from retroflow.generation.retrieved import Retrieved, Source
from retroflow.pipeline.lookups import LiveSearch
from retroflow.protocols import Neighbours
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.runs.description import RUN_FILE, read_run
from retroflow.store.agreement import check_same_rows
from retroflow.store.artifact import INDEX_FOLDER, check_parents, open_artifact, parent_of
from retroflow.store.chunk_store import ChunkSource, ChunkStore
from retroflow.store.manifest import FINGERPRINT_DIGITS, MANIFEST_NAME, Manifest

INDEX_FOLDERS = "index-*"


@dataclass(frozen=True)
class _Place:
    """The folder of an index, and the recipe sections that open it if they do not come from its manifests."""

    index: Path
    embedder: Mapping[str, Any] | None = None
    retriever: Mapping[str, Any] | None = None


class RetrievalDatabase:
    """Chunks, index and, if it was made from embeddings, the embedder, ready for new text; a `LiveRetriever`.

    Attributes:
        fingerprint: of the index, or of the documents of a living database.
        name: what messages call it.
        metric: what scores mean, as in `Capabilities.metric`.
        chunks: all of them.
    """

    def __init__(
        self,
        chunks: ChunkSource,
        tokenizer: Tokenizer,
        embedder: CheckedEmbedder | None,
        retriever: CheckedRetriever | Search,
        *,
        fingerprint: str,
        name: str = "",
    ) -> None:
        self.fingerprint, self.name = fingerprint, name or f"index-{fingerprint}"
        self.metric = retriever.capabilities.metric
        self._snapshot: Snapshot | None = None
        self._living: Database | None = None
        self.chunks, self._tokenizer = chunks, tokenizer
        self._live = LiveSearch(tokenizer, embedder, retriever)

    @classmethod
    def open(cls, folder: Path, *, tokenizer: Tokenizer, chunk_length: int) -> Self:
        """Open a database for a model.

        Args:
            folder: a database of `retroflow db` (with `@7` or `@tag` for a version), or an index folder
                (`index-<fingerprint>`, with the artifacts that it was made from beside it),
                a folder of artifacts that holds a single index, or a run folder.
            tokenizer: the model's.
            chunk_length: the model's m.

        Raises:
            GenerationError: no such database, or it was made with another tokenizer, chunk length or embedder.
            DamagedDataError: its bytes differ from what was written.
            RetroflowError: its embedder or retriever cannot be created here.
        """
        if (living := _living(Path(folder))) is not None:
            return cls.of(living, tokenizer=tokenizer, chunk_length=chunk_length)
        place = _find(Path(folder))
        index = open_artifact(place.index, kind="index")
        embedder, child = None, (place.index, index)
        if "embeddings" in index.parents:
            child = embeddings_folder, embeddings = _parent(place.index, index, "embeddings")
        chunks_folder, chunks = _parent(*child, "chunks")
        for folder, manifest in {child[0]: child[1], place.index: index}.items():
            check_same_rows(folder, manifest, chunks)
        made_with = (chunks.info["tokenizer"], chunks.info["chunk_length"])
        check_fits(place.index, made_with, (tokenizer, chunk_length), "retroflow prepare --recipe YOUR_RECIPE")
        store = ChunkStore.open(chunks_folder / "train")
        if "embeddings" in index.parents:
            embedder = _open_embedder(embeddings_folder, embeddings, place.embedder)
        retriever = _open_retriever(place.index, index, place.retriever)
        if len(retriever) != len(store):
            raise DamagedDataError(
                f'"{place.index}": it holds {len(retriever):,} vectors for {len(store):,} chunks. Delete the folder; '
                "the next prepare builds it again."
            )
        own = load_tokenizer(str(chunks_folder / "tokenizer"))
        return cls(store, own, embedder, retriever, fingerprint=index.fingerprint)

    @classmethod
    def of(cls, database: Database, *, tokenizer: Tokenizer, chunk_length: int) -> Self:
        """Read the version of a database that is open.

        Raises:
            GenerationError: it was made with another tokenizer or chunk length than the model's, or its embedder is
                another one here.
        """
        # Opened again: this version stays readable, whatever `database` does next.
        snapshot = Snapshot.open(database.folder, database.version.number)
        identity = snapshot.identity
        made_with = (identity.tokenizer_fingerprint, identity.chunk_length)
        check_fits(database.folder, made_with, (tokenizer, chunk_length), "retroflow db build DB")
        with naming_former_owner("retriever", identity.manifest.info["retriever"]):
            found = snapshot.search
        own = identity.tokenizer
        print_ = database.fingerprint[:FINGERPRINT_DIGITS]
        name = f"{database.folder.name}@{database.version.number} ({print_})"
        opened = cls(snapshot.view, own, identity.embedder, found, fingerprint=print_, name=name)
        opened._snapshot, opened._living = snapshot, database
        return opened

    def living(self) -> Database | None:
        """Return the database that this is a version of; None for a prepared index, which cannot be changed."""
        return self._living

    def close(self) -> None:
        """Let a writer delete the files of this version."""
        if self._snapshot is not None:
            self._snapshot.close()

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self.chunks)

    def retrieve(self, queries: Sequence[Sequence[int]], num_neighbours: int) -> Retrieved:
        """Find the neighbours of windows; see `LiveRetriever.retrieve`.

        End-of-text tokens are not text: a window without other tokens finds nothing.
        """
        return self.read(self.nearest(queries, num_neighbours))

    def nearest(self, queries: Sequence[Sequence[int]], num_neighbours: int) -> Neighbours:
        """Find the chunks that `retrieve` reads: ids and scores [q, k], -1 and -inf where there is none."""
        return self._live.nearest(queries, num_neighbours)

    def read(self, found: Neighbours) -> Retrieved:
        """Read chunks with their continuations; ids and scores are [q, k]."""
        ids, scores = found
        tokens, mask = read_retrieved(self.chunks, ids, ids >= 0)
        sources = [
            tuple(
                self._source(int(chunk), float(score), tokens[row, place][mask[row, place]].tolist())
                for place, (chunk, score) in enumerate(zip(ids[row], scores[row], strict=True))
                if chunk >= 0
            )
            for row in range(len(ids))
        ]
        return Retrieved(tokens, mask, sources)

    def _source(self, chunk: int, score: float, tokens: list[int]) -> Source:
        record = self.chunks.document(int(self.chunks.document_ids[chunk]))
        text = self._tokenizer.decode(tokens)
        return Source(record.id, record.title, record.source, text, score, chunk)


@dataclass(frozen=True)
class PreparedParts:
    """The artifacts of a prepared database, and the recipe sections that open them.

    Attributes:
        chunks: folder of the chunks.
        embeddings: folder of the embeddings, None if there are none.
        sections: `corpus` (None if it is not known), `embedder` and `retriever`.
    """

    chunks: Path
    embeddings: Path | None
    sections: dict[str, Any]


def prepared_parts(folder: Path) -> PreparedParts:
    """Find what a prepared database was made from.

    Args:
        folder: an index folder, a folder of artifacts that holds a single index, or a run folder.

    Raises:
        GenerationError: no such database.
        DamagedDataError: its bytes differ from what was written.
    """
    place = _find(folder)
    index = open_artifact(place.index, kind="index")
    child, embeddings = (place.index, index), None
    sections: dict[str, Any] = {"embedder": {"name": "none"}, "retriever": dict(place.retriever or index.component)}
    if "embeddings" in index.parents:
        child = embeddings, manifest = _parent(place.index, index, "embeddings")
        sections["embedder"] = dict(place.embedder or manifest.component)
    chunks, _ = _parent(*child, "chunks")
    corpus = None
    if (folder / RUN_FILE).is_file():
        run = read_run(folder)
        corpus = run.located(run.values["corpus"])
    return PreparedParts(chunks, embeddings, {"corpus": corpus, **sections})


def _living(folder: Path) -> Database | None:
    """Open a living database, or the one that a run was trained on, if it is where it was; else None."""
    if is_database(folder):
        return Database.open(folder)
    if not (folder / RUN_FILE).is_file():
        return None
    run = read_run(folder)
    corpus, data = run.located(run.values["corpus"]), run.located(run.values["data"])
    path = corpus["path"] if corpus["name"] == "database" else data.get("passages")
    return Database.open(path) if path is not None and is_database(Path(path)) else None


def _find(folder: Path) -> _Place:
    if not folder.is_dir():
        raise unfit(
            "database",
            f'there is no folder "{folder}"; give a database (`retroflow db build`), an index folder (index-... in the '
            "artifacts that `retroflow prepare` made) or a run folder.",
        )
    if (folder / RUN_FILE).is_file():
        run = read_run(folder)
        embedder, retriever = run.located(run.values["embedder"]), run.located(run.values["retriever"])
        return _Place(run.artifact("index"), embedder, retriever)
    if (folder / MANIFEST_NAME).is_file():
        return _Place(folder.resolve())  # the chunks are beside the target, not beside a link
    indexes = sorted(path for path in folder.glob(INDEX_FOLDERS) if path.is_dir() and path.suffix != ".partial")
    if len(indexes) == 1:
        return _Place(indexes[0].resolve())
    held = f"{len(indexes)} databases: {', '.join(path.name for path in indexes)}" if indexes else "no database"
    raise unfit(
        "database",
        f'"{folder}" holds {held}; give one index folder (index-... in the artifacts that '
        "`retroflow prepare` made) or a run folder.",
    )


def _parent(folder: Path, manifest: Manifest, kind: str) -> tuple[Path, Manifest]:
    """Open the artifact that another was made from, which lies beside it.

    Raises:
        GenerationError: it is not there.
        DamagedDataError: it has other bytes than were written, or is another than the one that was used.
    """
    parent = folder.parent / f"{kind}-{manifest.parents[kind]['fingerprint']}"
    if not parent.is_dir():
        raise unfit(
            "database",
            f'"{folder.name}" was made from "{parent.name}", which is not beside it in "{folder.parent}". '
            "Copy it there too, or prepare the database again.",
        )
    opened = open_artifact(parent, kind=kind)
    check_parents(folder, manifest, {kind: parent_of(opened)})
    return parent, opened


def check_fits(database: Path, made_with: tuple[str, int], model: tuple[Tokenizer, int], command: str) -> None:
    """Refuse a database whose chunks the model cannot read.

    Args:
        database: its folder.
        made_with: fingerprint of its tokenizer, and its chunk length.
        model: the tokenizer and the chunk length of the model.
        command: makes one that fits.

    Raises:
        GenerationError: another tokenizer or another chunk length.
    """
    theirs, their_length = made_with
    tokenizer, chunk_length = model
    how = f"data.tokenizer={Path(tokenizer.origin).parent} data.chunk_length={chunk_length}"
    remedy = f"Prepare one for this model: {command} {how}"
    ours = tokenizer.fingerprint()
    if theirs != ours:
        raise unfit(
            "database",
            f'"{database}" was made with another tokenizer (fingerprint {theirs[:16]}) than the model '
            f"({ours[:16]}), so its tokens mean other text. {remedy}",
        )
    if their_length != chunk_length:
        raise unfit(
            "database",
            f'"{database}" holds chunks of {their_length} tokens, and the model reads chunks '
            f"of {chunk_length}. {remedy}",
        )


def _open_embedder(folder: Path, manifest: Manifest, given: Mapping[str, Any] | None) -> CheckedEmbedder:
    block = given or manifest.component
    distribution = manifest.inputs["embedder"].get("distribution", "")
    with naming_former_owner("embedder", f"{block['name']} ({distribution})"):
        embedder = create_embedder(block)
    if embedder.fingerprint() != manifest.inputs["embedder"]:
        raise unfit(
            "database",
            f'the embedder "{block["name"]}" as it is here (fingerprint {embedder.fingerprint()}) is not '
            f'the one that made the keys of "{folder}" ({manifest.inputs["embedder"]}), so queries would not meet '
            "them. Install that model or version again, or prepare the database anew.",
        )
    embedder.load(folder / "embedder")
    return embedder


def _open_retriever(folder: Path, manifest: Manifest, given: Mapping[str, Any] | None) -> CheckedRetriever:
    block = given or manifest.component
    with naming_former_owner("retriever", owner_of_index(folder)):
        retriever = create_retriever(block)
    retriever.load(folder / INDEX_FOLDER)
    return retriever
