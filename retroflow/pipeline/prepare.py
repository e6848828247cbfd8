"""prepare: from a recipe to chunks, embeddings, index and neighbours on disk, making only what is missing."""

import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retroflow.components import create_corpus, create_embedder
from retroflow.console import say
from retroflow.corpus.checked import CheckedCorpus
from retroflow.corpus.split import check_held_out
from retroflow.corpus.tokenizer import Tokenizer
from retroflow.embedding.checked import CheckedEmbedder
from retroflow.errors import RetroflowError, UsageError
from retroflow.pipeline import fingerprint, stages
from retroflow.pipeline.chunks import ChunkStage, warn_of_few_tokens
from retroflow.pipeline.embeddings import EmbeddingStage
from retroflow.pipeline.given_tokenizer import given_tokenizer
from retroflow.pipeline.index import IndexStage
from retroflow.pipeline.memory import release_free_memory
from retroflow.pipeline.neighbours import NeighbourStage, Sources, check_enough_chunks, concerns, describe_exact
from retroflow.pipeline.options import DataOptions, NeighbourOptions
from retroflow.pipeline.recipe_retriever import RecipeRetriever
from retroflow.pipeline.sharing import ALONE, Sharing
from retroflow.recipe import Recipe
from retroflow.retrieval.checked import CheckedRetriever
from retroflow.store.agreement import check_same_rows
from retroflow.store.artifact import (
    INDEX_FOLDER,
    artifact_folder,
    check_parents,
    open_artifact,
    parent_of,
)
from retroflow.store.atomic import disk_errors
from retroflow.store.manifest import Manifest, fingerprint_of
from retroflow.store.pieces import discard_pieces


@dataclass(frozen=True)
class Stage:
    """One artifact of a recipe, new or existing.

    Attributes:
        folder: of the artifact.
        manifest: of the artifact.
        built: made by this call.
        seconds: time to make it, or to find and check it.
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

    Without retrieval (`trainer.retrieval: false`) they are the chunks alone. With a retriever that reads no vectors
    there are no embeddings. What is not there is None.

    Attributes:
        tokenizer: folder of the tokenizer.
        train_chunks, valid_chunks: for `ChunkStore.open`.
        fingerprints: kind -> fingerprint of its artifact.
        built: kinds that were made by this call.
        stages: those that there are, in order.
        train_embeddings, valid_embeddings: for `EmbeddingStore.open`.
        index: folder for `CheckedRetriever.load`.
        train_neighbours, valid_neighbours: for `NeighbourTable.open`.
    """

    tokenizer: Path
    train_chunks: Path
    valid_chunks: Path
    fingerprints: dict[str, str]
    built: tuple[str, ...]
    stages: tuple[Stage, ...]
    train_embeddings: Path | None = None
    valid_embeddings: Path | None = None
    index: Path | None = None
    train_neighbours: Path | None = None
    valid_neighbours: Path | None = None


def describe(stage: Stage) -> str:
    """Describe a finished stage in one line."""
    info = stage.manifest.info
    counts = {
        "chunks": lambda: ", ".join(
            f"{split['chunks']:,} {name} chunks of {split['documents']:,} documents"
            for name, split in info["splits"].items()
        ),
        "embeddings": lambda: (
            f"{sum(split['chunks'] for split in info['splits'].values()):,} of width {info['dimension']:,}"
        ),
        "index": lambda: f"{info['chunks']:,} chunks",
        "neighbours": lambda: ", ".join(part for part in _describe_neighbours(info) if part),
    }[stage.kind]()
    verb = "built" if stage.built else "re-used"
    return f"{stage.kind}: {verb}, {counts}, {stage.seconds:.1f} s, {stage.folder}"


def _describe_neighbours(info: Mapping[str, Any]) -> list[str]:
    k, recall = info["k"], info["recall"]
    measured = recall["recall_at_k"]
    recall_text = "not measured" if measured is None else f"{measured:.3f} on {recall['queries']} of them"
    return [f"{k} for {sum(info['chunks'].values()):,} chunks", f"recall@{k} {recall_text}", describe_exact(info)]


def say_stage(stage: Stage) -> None:
    """Print the line about a finished stage."""
    say(describe(stage))


def find_prepared(recipe: Recipe) -> Prepared:
    """Open a recipe's artifacts without making any, since one of many processes must not.

    Raises:
        UsageError: one is missing; the message has the command that makes it.
    """
    return prepare(recipe, report=lambda stage: None, sharing=Sharing(command=prepare_command(recipe)))


def prepare_command(recipe: Recipe) -> str:
    """Return the command line that prepares a recipe, with the overrides that it was loaded with."""
    return shlex.join(["retroflow", *prepare_words(recipe)])


def prepare_words(recipe: Recipe) -> list[str]:
    """Return the words of that command line, after "retroflow"."""
    return ["prepare", "--recipe", str(recipe.path), *recipe.overrides()]


def prepare(recipe: Recipe, *, report: Callable[[Stage], None] = say_stage, sharing: Sharing = ALONE) -> Prepared:
    """Make what is missing of a recipe's artifacts.

    After a kill at any point it continues where it was; two processes may call it at once.

    Args:
        recipe: its sections corpus, embedder (if the retriever reads vectors), retriever, neighbours and data are
            used; of model, whether it brings a tokenizer; of trainer, whether anything is retrieved: without retrieval
            chunks are all that is needed.
        report: called with every stage as it is finished or found.
        sharing: which shard this process makes.

    Raises:
        Unfinished: other shards are missing.
        CorpusError: no text, or fewer chunks than `neighbours.k` needs.
        DamagedDataError: an artifact or a document is damaged.
        RetroflowError: a full disk, a folder that cannot be written, or an error of a component.
    """
    data = DataOptions(**recipe.section("data"))
    artifacts = Path(os.path.expanduser(data.artifacts_folder))
    data.check_format(retrieval=retrieves(recipe))
    if data.format == "qa" or not retrieves(recipe):  # passages are found in a database
        _make_folder(artifacts)
        with disk_errors(artifacts):
            chunks = _chunks(recipe, data, artifacts, sharing)
            report(chunks)
        return prepared_of(chunks)
    options = NeighbourOptions(**recipe.section("neighbours"))
    options.step_for(data.chunk_length)
    # First, so that a missing library or a bad option is not found after minutes of embedding.
    retriever = RecipeRetriever(recipe.section("retriever"))
    made = retriever.new()
    made.fingerprint()
    embedder = create_embedder(recipe.section("embedder")) if retriever.reads_vectors else None
    if embedder is not None:
        made.check_vectors(None, embedder.dimension)
    _make_folder(artifacts)
    with disk_errors(artifacts):
        chunks = _chunks(recipe, data, artifacts, sharing)
        report(chunks)
        check_enough_chunks(chunks.manifest, options)
        found = {"chunks": chunks}
        if embedder is None and not sharing.command:
            say(f"no embeddings: {retriever.owner} searches the texts of the chunks")
        if embedder is not None:
            retriever.new().check_vectors(chunks.manifest.info["splits"]["train"]["chunks"], embedder.dimension)
            found["embeddings"] = _embeddings(embedder, recipe, chunks, sharing)
            report(found["embeddings"])
        found["index"] = _index(retriever, found, sharing)
        report(found["index"])
        found["neighbours"] = _neighbours(retriever, options, found, sharing)
        report(found["neighbours"])
    if not sharing.command:
        for line in concerns(found["neighbours"].manifest.info, retriever.owner):
            say(line)
    return prepared_of(*found.values())


def retrieves(recipe: Recipe) -> bool:
    """Return whether a recipe trains with retrieval, so that it needs more than chunks."""
    return bool(recipe.values.get("trainer", {}).get("retrieval", True))


def _make_folder(artifacts: Path) -> None:
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RetroflowError(
            f'data.artifacts_folder: "{artifacts}" cannot be made ({error.strerror}); choose a folder that can be '
            "written."
        ) from error


def expected_fingerprints(recipe: Recipe) -> dict[str, str]:
    """Return the fingerprints of what `prepare` would make or find, by kind, without making anything.

    Args:
        recipe: as for `prepare`.

    Raises:
        RetroflowError: an error of a component, such as a missing corpus.
    """
    data = DataOptions(**recipe.section("data"))
    corpus = create_corpus(recipe.section("corpus"))
    names = {"chunks": fingerprint_of(_chunks_inputs(corpus, given_tokenizer(recipe, data), data))}
    if data.format == "qa" or not retrieves(recipe):
        return names
    retriever, options = RecipeRetriever(recipe.section("retriever")), NeighbourOptions(**recipe.section("neighbours"))
    if retriever.reads_vectors:
        embedder = create_embedder(recipe.section("embedder"))
        names["embeddings"] = fingerprint_of(fingerprint.embeddings_inputs(names["chunks"], embedder.fingerprint()))
    names["index"] = fingerprint_of(retriever.index_inputs(names))
    found = fingerprint.neighbours_inputs(names["index"], retriever.search_options, options)
    names["neighbours"] = fingerprint_of(found)
    return names


def _chunks_inputs(corpus: CheckedCorpus, tokenizer: Tokenizer | None, data: DataOptions) -> fingerprint.Inputs:
    given = None if tokenizer is None else tokenizer.fingerprint()
    return fingerprint.chunks_inputs(corpus.fingerprint(), given, data)


def _chunks(recipe: Recipe, data: DataOptions, artifacts: Path, sharing: Sharing) -> Stage:
    check_held_out(recipe.section("corpus"))
    corpus = create_corpus(recipe.section("corpus"))
    tokenizer = given_tokenizer(recipe, data)
    made = _made(ChunkStage(_chunks_inputs(corpus, tokenizer, data), corpus, tokenizer, data), artifacts, sharing)
    if not sharing.command:
        warn_of_few_tokens(made.manifest)
    return made


def _embeddings(embedder: CheckedEmbedder, recipe: Recipe, chunks: Stage, sharing: Sharing) -> Stage:
    inputs = fingerprint.embeddings_inputs(chunks.manifest.fingerprint, embedder.fingerprint())
    stored = create_corpus(recipe.section("corpus")).embedded
    stage = EmbeddingStage(inputs, chunks.folder, chunks.manifest, embedder, recipe.section("embedder"), stored)
    return _made(stage, chunks.folder.parent, sharing)


def _index(retriever: RecipeRetriever, found: Mapping[str, Stage], sharing: Sharing) -> Stage:
    inputs = retriever.index_inputs({kind: stage.manifest.fingerprint for kind, stage in found.items()})
    folders = {kind: found[kind].folder for kind in retriever.built_over}
    parents = {kind: parent_of(found[kind].manifest) for kind in retriever.built_over}
    stage = IndexStage(inputs, folders, parents, retriever.new, retriever.options)
    return _made(stage, found["chunks"].folder.parent, sharing)


def _neighbours(
    retriever: RecipeRetriever, options: NeighbourOptions, found: Mapping[str, Stage], sharing: Sharing
) -> Stage:
    chunks, embeddings, index = found["chunks"], found.get("embeddings"), found["index"]
    inputs = fingerprint.neighbours_inputs(index.manifest.fingerprint, retriever.search_options, options)
    # An index that was built again may have other bytes (ScaNN) and is as good: its keys are the same.
    parents = {kind: parent_of(stage.manifest, by_content=kind != "index") for kind, stage in found.items()}

    def load() -> CheckedRetriever:
        # Native code may crash or hang: the last line on the screen then names it.
        say(f"searching the index with {retriever.owner}, {index.manifest.info['chunks']:,} chunks")
        return retriever.load(index.folder)

    sources = Sources(chunks.folder, None if embeddings is None else embeddings.folder, parents)
    stage = NeighbourStage(inputs, sources, load, options)
    return _made(stage, chunks.folder.parent, sharing)


def _made(stage: stages.Stage, artifacts: Path, sharing: Sharing) -> Stage:
    """Open a stage's artifact; make it first if it is missing.

    Raises:
        UsageError: it is missing, and this process must not make it.
    """
    started = time.monotonic()
    kind, parents = stage.kind, stage.parents
    folder = artifact_folder(artifacts, kind, stage.inputs)
    if not folder.exists() and sharing.command:
        raise UsageError(
            f"{folder}: the {kind} of this recipe are not prepared, and several processes must not do it at once. "
            f"First run\n  {sharing.command}"
        )
    built = stages.make_artifact(stage, folder, sharing)
    if built:
        del stage
        release_free_memory()
    discard_pieces(folder)
    manifest = open_artifact(folder, kind=kind)
    check_parents(folder, manifest, parents)
    return Stage(folder, manifest, built, time.monotonic() - started)


def prepared_of(chunks: Stage, *others: Stage) -> Prepared:
    """Return opened artifacts in the order of their stages."""
    stages = (chunks, *others)
    found = Prepared(
        tokenizer=chunks.folder / "tokenizer",
        train_chunks=chunks.folder / "train",
        valid_chunks=chunks.folder / "valid",
        fingerprints={stage.kind: stage.manifest.fingerprint for stage in stages},
        built=tuple(stage.kind for stage in stages if stage.built),
        stages=stages,
    )
    for stage in others:
        check_same_rows(stage.folder, stage.manifest, chunks.manifest)
    folders = {stage.kind: stage.folder for stage in others}
    if "embeddings" in folders:
        embeddings = folders["embeddings"]
        found = replace(found, train_embeddings=embeddings / "train", valid_embeddings=embeddings / "valid")
    if "neighbours" in folders:
        index, neighbours = folders["index"] / INDEX_FOLDER, folders["neighbours"]
        found = replace(
            found, index=index, train_neighbours=neighbours / "train", valid_neighbours=neighbours / "valid"
        )
    return found
