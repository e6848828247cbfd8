"""prepare: from a recipe to chunks, embeddings, index and neighbours on disk, making only what is missing."""

import os
import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retroflow.components import CORPORA, EMBEDDERS, RETRIEVERS, create
from retroflow.corpus.documents import Corpus
from retroflow.corpus.tokenizer import load_tokenizer
from retroflow.errors import DamagedDataError, RecipeError
from retroflow.pipeline import fingerprint
from retroflow.pipeline.chunks import make_chunks
from retroflow.pipeline.embeddings import make_embeddings
from retroflow.pipeline.fingerprint import Inputs
from retroflow.pipeline.given_tokenizer import given_tokenizer
from retroflow.pipeline.index import make_index
from retroflow.pipeline.memory import give_back
from retroflow.pipeline.neighbours import Sources, check_enough_chunks, make_neighbours
from retroflow.pipeline.options import DataOptions, NeighbourOptions
from retroflow.pipeline.progress import say
from retroflow.protocols import Embedder
from retroflow.recipe import Recipe
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.store.artifact import (
    INDEX_FOLDER,
    artifact_folder,
    building,
    check_parents,
    commit,
    finished_manifest,
    open_artifact,
    parent_of,
)
from retroflow.store.atomic import disk_errors
from retroflow.store.manifest import Manifest


@dataclass(frozen=True)
class Stage:
    """One artifact of a recipe, made now or found.

    Attributes:
        folder: where it is.
        manifest: what is in it.
        built: made by this call.
        seconds: time it took to make, or to find and check.
    """

    folder: Path
    manifest: Manifest
    built: bool
    seconds: float

    @property
    def kind(self) -> str:
        """chunks, embeddings, index or neighbours."""
        return self.manifest.kind


@dataclass(frozen=True)
class Prepared:
    """The artifacts of a recipe.

    Attributes:
        tokenizer: folder of the tokenizer.
        train_chunks, valid_chunks: for `ChunkStore.open`.
        train_embeddings, valid_embeddings: for `EmbeddingStore.open`.
        index: folder for `CheckedRetriever.load`.
        train_neighbours, valid_neighbours: for `NeighbourTable.open`.
        fingerprints: kind -> fingerprint of its artifact.
        built: kinds that were made by this call.
        stages: all four, in order.
    """

    tokenizer: Path
    train_chunks: Path
    valid_chunks: Path
    train_embeddings: Path
    valid_embeddings: Path
    index: Path
    train_neighbours: Path
    valid_neighbours: Path
    fingerprints: dict[str, str]
    built: tuple[str, ...]
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class _Artifacts:
    """Where artifacts are.

    Attributes:
        folder: all of them.
        command: what makes a missing one, for the message that refuses to; empty to make it here.
    """

    folder: Path
    command: str = ""


def describe(stage: Stage) -> str:
    """One line about a finished stage."""
    info = stage.manifest.info
    counts = {
        "chunks": lambda: ", ".join(
            f"{split['chunks']:,} {name} chunks of {split['documents']:,} documents"
            for name, split in info["splits"].items()
        ),
        "embeddings": lambda: (
            f"{sum(split['chunks'] for split in info['splits'].values()):,} of width {info['dimension']:,}"
        ),
        "index": lambda: f"{info['vectors']:,} vectors",
        "neighbours": lambda: (
            f"{info['k']} for {sum(info['chunks'].values()):,} chunks, "
            f"recall@{info['k']} {info['recall']['recall_at_k']:.3f} on {info['recall']['queries']} of them"
        ),
    }[stage.kind]()
    verb = "built" if stage.built else "re-used"
    return f"{stage.kind}: {verb}, {counts}, {stage.seconds:.1f} s, {stage.folder}"


def _say_stage(stage: Stage) -> None:
    say(describe(stage))


def find_prepared(recipe: Recipe) -> Prepared:
    """Open a recipe's artifacts without making any: one of many processes must not begin to.

    Raises:
        RecipeError: one is missing; the message is the command that makes it.
    """
    return prepare(recipe, report=lambda stage: None, make_missing=False)


def prepare_command(recipe: Recipe) -> str:
    """Return the command line that prepares a recipe, with the overrides that it was loaded with."""
    words = ["retroflow", "prepare", "--recipe", str(recipe.path), *recipe.overrides()]
    return " ".join(shlex.quote(word) for word in words)


def prepare(recipe: Recipe, *, report: Callable[[Stage], None] = _say_stage, make_missing: bool = True) -> Prepared:
    """Make what is missing of a recipe's artifacts.

    Killed anywhere and called again it goes on where it was; two processes may call it at once.

    Args:
        recipe: its sections corpus, embedder, retriever, neighbours and data are used; of model, whether it brings
            a tokenizer.
        report: called with every stage as it is finished or found.
        make_missing: False refuses to make anything.

    Raises:
        CorpusError: no text, or fewer chunks than `neighbours.k` needs.
        DamagedDataError: an artifact or a document that is not what it ought to be.
        RetroflowError: a full disk, a folder that cannot be written, and what the components raise.
    """
    data = DataOptions(**recipe.section("data"))
    options = NeighbourOptions(**recipe.section("neighbours"))
    artifacts = _Artifacts(
        Path(os.path.expanduser(data.artifacts_folder)), "" if make_missing else prepare_command(recipe)
    )
    # First of all, so that a missing library or a bad option is not told after minutes of embedding.
    embedder: Embedder = create(EMBEDDERS, recipe.section("embedder"))
    retriever = _Retriever(recipe)
    retriever.new()
    with disk_errors(artifacts.folder):
        artifacts.folder.mkdir(parents=True, exist_ok=True)
        chunks = _chunks(recipe, data, artifacts)
        report(chunks)
        check_enough_chunks(chunks.manifest, options)
        embeddings = _embeddings(embedder, recipe.section("embedder"), artifacts, chunks)
        report(embeddings)
        index = _index(retriever, artifacts, embeddings)
        report(index)
        neighbours = _neighbours(retriever, options, artifacts, (chunks, embeddings, index))
        report(neighbours)
    return _prepared(chunks, embeddings, index, neighbours)


def _check_held_out(options: Mapping[str, Any]) -> None:
    """Refuse a corpus without validation text before it is read rather than after.

    Raises:
        RecipeError: valid_share is 0, and no validation documents have a place of their own.
    """
    own = [key for key in ("valid_path", "valid_split") if key in options]
    if options.get("valid_share") == 0 and all(options[key] is None for key in own):
        instead = "".join(f", or give corpus.{key}" for key in own)
        raise RecipeError(
            f"corpus.valid_share: given 0, allowed 0 < share < 1{' without ' + own[0] if own else ''}: a model is "
            f"always evaluated on text that it was not trained on. Leave it out (0.05){instead}."
        )


def _chunks(recipe: Recipe, data: DataOptions, artifacts: _Artifacts) -> Stage:
    _check_held_out(recipe.section("corpus"))
    corpus: Corpus = create(CORPORA, recipe.section("corpus"))
    tokenizer = given_tokenizer(recipe, data)
    given = None if tokenizer is None else tokenizer.fingerprint()
    inputs = fingerprint.chunks_inputs(corpus.fingerprint(), given, data)

    def make(partial: Path) -> Manifest:
        try:
            return make_chunks(partial, inputs, corpus, tokenizer, data)
        except (RecipeError, DamagedDataError):
            # The corpus has to change before this can go on, and then it is another artifact.
            shutil.rmtree(partial, ignore_errors=True)
            raise

    return _stage(artifacts, "chunks", inputs, {}, make)


def _embeddings(embedder: Embedder, options: Mapping[str, Any], artifacts: _Artifacts, chunks: Stage) -> Stage:
    inputs = fingerprint.embeddings_inputs(chunks.manifest.fingerprint, embedder.fingerprint())

    def make(partial: Path) -> Manifest:
        tokenizer = load_tokenizer(str(chunks.folder / "tokenizer"))
        made = make_embeddings(partial, inputs, chunks.folder, chunks.manifest, embedder, tokenizer)
        return replace(made, component=options)

    return _stage(artifacts, "embeddings", inputs, {"chunks": parent_of(chunks.manifest)}, make)


class _Retriever:
    """The recipe's retriever: a new one for every use, so that an index leaves the memory with its stage."""

    def __init__(self, recipe: Recipe) -> None:
        options = recipe.section("retriever")
        self.name: str = options["name"]
        self.search_options = {key: value for key, value in options.items() if key not in ("name", "build")}
        self.options = options

    def new(self) -> CheckedRetriever:
        owner = f"{self.name} ({RETRIEVERS.origin(self.name)})"
        return CheckedRetriever(create(RETRIEVERS, self.options), owner=owner)

    def load(self, index: Path) -> CheckedRetriever:
        retriever = self.new()
        retriever.load(index / INDEX_FOLDER)
        return retriever


def _index(retriever: _Retriever, artifacts: _Artifacts, embeddings: Stage) -> Stage:
    inputs = fingerprint.index_inputs(embeddings.manifest.fingerprint, retriever.name, retriever.new().fingerprint())

    def make(partial: Path) -> Manifest:
        made = make_index(partial, inputs, embeddings.folder, embeddings.manifest, retriever.new)
        return replace(made, component=retriever.options)

    return _stage(artifacts, "index", inputs, {"embeddings": parent_of(embeddings.manifest)}, make)


def _neighbours(
    retriever: _Retriever, options: NeighbourOptions, artifacts: _Artifacts, before: tuple[Stage, Stage, Stage]
) -> Stage:
    chunks, embeddings, index = before
    inputs = fingerprint.neighbours_inputs(index.manifest.fingerprint, retriever.search_options, options)
    parents = {
        "chunks": parent_of(chunks.manifest),
        "embeddings": parent_of(embeddings.manifest),
        # An index that was built again may have other bytes (ScaNN) and is as good: its vectors are the same.
        "index": parent_of(index.manifest, by_content=False),
    }

    def make(partial: Path) -> Manifest:
        sources = Sources(chunks.folder, embeddings.folder, parents)
        return make_neighbours(partial, inputs, sources, retriever.load(index.folder), options)

    return _stage(artifacts, "neighbours", inputs, parents, make)


def _stage(
    artifacts: _Artifacts,
    kind: str,
    inputs: Inputs,
    parents: Mapping[str, Mapping[str, str]],
    make: Callable[[Path], Manifest],
) -> Stage:
    """Open the artifact of these inputs, made first if it is not there."""
    started = time.monotonic()
    folder = artifact_folder(artifacts.folder, kind, inputs)
    built = False
    if not folder.exists() and artifacts.command:
        raise RecipeError(
            f"{folder}: the {kind} of this recipe are not prepared, and several processes must not do it at once. "
            f"First run\n  {artifacts.command}"
        )
    if not folder.exists():
        with building(folder, say, parents) as partial:
            if partial is not None:
                manifest: Any = finished_manifest(partial) or make(partial)
                commit(partial, manifest, folder)
                built = True
        give_back()
    manifest = open_artifact(folder, kind=kind)
    check_parents(folder, manifest, parents)
    return Stage(folder, manifest, built, time.monotonic() - started)


def _prepared(*stages: Stage) -> Prepared:
    chunks, embeddings, index, neighbours = (stage.folder for stage in stages)
    return Prepared(
        tokenizer=chunks / "tokenizer",
        train_chunks=chunks / "train",
        valid_chunks=chunks / "valid",
        train_embeddings=embeddings / "train",
        valid_embeddings=embeddings / "valid",
        index=index / INDEX_FOLDER,
        train_neighbours=neighbours / "train",
        valid_neighbours=neighbours / "valid",
        fingerprints={stage.kind: stage.manifest.fingerprint for stage in stages},
        built=tuple(stage.kind for stage in stages if stage.built),
        stages=stages,
    )
