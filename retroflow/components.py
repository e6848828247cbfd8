"""Every built-in name on one screen, and how a section of a recipe becomes an instance.

To add a component from outside, declare an entry point in one of the groups below (docs/writing-a-retriever.md).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from retroflow.distributions import missing_requirements
from retroflow.errors import ComponentError, RetroflowError, UsageError
from retroflow.options import bind
from retroflow.recipe.schema import RecipeSchema, Section, Slot
from retroflow.recipe.signatures import read_block
from retroflow.recipe.source import imported_packages
from retroflow.registry import Entry, Registry, blaming, is_installed

if TYPE_CHECKING:  # numpy, which the protocols need, would take a third of the time `recipe check` has
    from retroflow.corpus.checked import CheckedCorpus
    from retroflow.embedding.checked import CheckedEmbedder
    from retroflow.protocols import Corpus, Embedder, ModelConfig, Retriever, Tracker
    from retroflow.retrieval.checked import CheckedRetriever

_DENSE_AND_WORDS = {"dense": "faiss", "words": "bm25"}

RETRIEVERS: "Registry[type[Retriever]]" = Registry(
    "retriever",
    "retroflow.retrievers",
    {
        "exact": Entry("retroflow.retrieval.exact:ExactRetriever", needs=("embedder",)),
        "faiss": Entry(
            "retroflow.retrieval.faiss:FaissRetriever",
            extra="faiss",
            requires=("faiss",),
            needs=("embedder",),
            check="retroflow.retrieval.faiss_options:check_options",
        ),
        "scann": Entry(
            "retroflow.retrieval.scann:ScannRetriever", extra="scann", requires=("scann",), needs=("embedder",)
        ),
        "hnsw": Entry(
            "retroflow.retrieval.hnsw:HnswRetriever", extra="hnsw", requires=("hnswlib",), needs=("embedder",)
        ),
        "bm25": Entry("retroflow.retrieval.bm25:Bm25Retriever", extra="bm25", requires=("bm25s",)),
        "hybrid": Entry("retroflow.retrieval.hybrid:HybridRetriever", needs=("embedder",), parts=_DENSE_AND_WORDS),
        "rerank": Entry("retroflow.retrieval.hybrid:RerankRetriever", needs=("embedder",), parts=_DENSE_AND_WORDS),
    },
    protocol="Retriever",
)

EMBEDDERS: "Registry[type[Embedder]]" = Registry(
    "embedder",
    "retroflow.embedders",
    {
        "bert": Entry("retroflow.embedding.bert:BertEmbedder"),
        "lexical": Entry(
            "retroflow.embedding.lexical:LexicalEmbedder", check="retroflow.embedding.lexical_terms:check_terms"
        ),
        "none": Entry("retroflow.embedding.no_embedder:NoEmbedder"),
    },
    protocol="Embedder",
)

MODELS: "Registry[type[ModelConfig]]" = Registry(
    "model",
    "retroflow.models",
    {
        "retro": Entry("retroflow.model.config:RetroConfig", light=True),
        "retro_172m": Entry("retroflow.model.paper_sizes:Retro172M", light=True),
        "retro_425m": Entry("retroflow.model.paper_sizes:Retro425M", light=True),
        "retro_1b5": Entry("retroflow.model.paper_sizes:Retro1B5", light=True),
        "retro_7b5": Entry("retroflow.model.paper_sizes:Retro7B5", light=True),
        "retrofit": Entry("retroflow.pretrained.retrofit_config:RetrofitConfig", light=True),
    },
    protocol="ModelConfig",
)

TRACKERS: "Registry[type[Tracker]]" = Registry(
    "tracker",
    "retroflow.trackers",
    {
        "none": Entry("retroflow.tracking.background:NoTracker"),
        "wandb": Entry("retroflow.tracking.wandb:WandbTracker", extra="wandb", requires=("wandb",)),
    },
    protocol="Tracker",
)

_HELD_OUT = "retroflow.corpus.split:check_held_out"

CORPORA: "Registry[type[Corpus]]" = Registry(
    "corpus",
    "retroflow.corpora",
    {
        "jsonl": Entry("retroflow.corpus.jsonl:JsonlCorpus", check=_HELD_OUT),
        "text": Entry("retroflow.corpus.text:TextCorpus", check=_HELD_OUT),
        "parquet": Entry(
            "retroflow.corpus.parquet:ParquetCorpus", extra="parquet", requires=("pyarrow",), check=_HELD_OUT
        ),
        "datasets": Entry(
            "retroflow.corpus.datasets:DatasetsCorpus", extra="datasets", requires=("datasets",), check=_HELD_OUT
        ),
        "database": Entry("retroflow.database.corpus:DatabaseCorpus", check=_HELD_OUT),
        "questions": Entry("retroflow.corpus.question_files:QuestionCorpus", check=_HELD_OUT),
        "python_source": Entry("retroflow.corpus.python_source:PythonSourceCorpus", light=True, check=_HELD_OUT),
    },
    protocol="Corpus",
)

KINDS: tuple[Registry[Any], ...] = (CORPORA, EMBEDDERS, RETRIEVERS, MODELS, TRACKERS)


def recipe_schema() -> RecipeSchema:
    """Return what a recipe may contain; reads the source of the components that a recipe names, imports none."""
    return RecipeSchema(
        sections={
            "corpus": Slot(CORPORA),
            "embedder": Slot(EMBEDDERS, default="none"),
            "retriever": Slot(RETRIEVERS),
            "neighbours": Section("retroflow.pipeline.options:NeighbourOptions"),
            "model": Slot(
                MODELS, derived={"vocabulary_size": "data.vocabulary_size", "chunk_length": "data.chunk_length"}
            ),
            "data": Section("retroflow.pipeline.options:DataOptions"),
            "optimizer": Section("retroflow.planning.options:OptimizerOptions"),
            "trainer": Section("retroflow.planning.options:TrainerOptions"),
            "tracker": Slot(TRACKERS, default="none"),
        },
        database="retroflow.database.corpus:sections_of",
    )


def database_schema(*, corpus: bool) -> RecipeSchema:
    """Return what describes a database, with or without the corpus that it is built from."""
    names = ("corpus",) * corpus + ("embedder", "retriever", "data")
    return RecipeSchema(sections={name: recipe_schema().sections[name] for name in names})


def find_fault(registry: Registry[Any], name: str) -> str | None:
    """Look at a component: is its name claimed once, its module there and Python, does it define the component?

    Further, whether its parameters can become options, and whether the packages are installed that its module imports
    at the top and that a plugin's distribution declares to need. What happens while it is imported is not known.

    Returns:
        The problem and what to do, None if nothing was found.
    """
    remedy = registry.remedy(name)
    if remedy is not None:
        return remedy
    entry = registry.entry(name)
    slots = [slot for slot in recipe_schema().slots.values() if slot.registry is registry]
    try:
        read_block(entry.target, entry.owner, frozenset(key for slot in slots for key in slot.derived))
    except RetroflowError as error:
        return str(error)
    missing = [package for package in imported_packages(entry.module) if not is_installed(package)]
    if missing:
        needed = registry.describe_missing_library(name, missing)
        return f'{registry.kind} "{name}" of {entry.owner} cannot be loaded: {needed}'
    lacking = missing_requirements(entry.distribution) if entry.is_plugin else []
    if lacking:
        words = " ".join(f'"{requirement}"' for requirement in lacking)
        return f"{entry.owner} declares to need {' and '.join(lacking)}, not installed here: pip install {words}"
    return None


def create(registry: Registry[Any], options: Mapping[str, Any], **derived: object) -> Any:
    """Create the component that a section of a recipe names.

    Args:
        registry: the table with the name.
        options: the section with its `name`; nested sections are mappings, which become the annotated dataclasses.
        derived: values that follow from other parts of the recipe (a model's vocabulary size).

    Raises:
        UsageError: an option the component does not have, or one it needs and was not given.
        ComponentError: a plugin raised what is no RetroflowError, or lacks a member of its protocol.
        RetroflowError: as `Registry.get`, and whatever the component refuses.
    """
    name = options["name"]
    component = registry.get(name)
    given = {key: value for key, value in options.items() if key != "name"}
    for part, default in registry.entry(name).parts.items():  # only retrievers have parts
        block = given.get(part) or {}
        if isinstance(block, Mapping):
            given[part] = create_retriever({"name": default, **block})
    where = f'{registry.kind} "{name}" of {registry.origin(name)}'
    with blaming(f"{where} could not be made", registry.entry(name)):
        made = bind(component, given | derived, where=where, owner=registry.kind)
        if registry.protocol:
            _check_members(made, registry.protocol, where)
    return made


def _check_members(component: object, protocol: str, where: str) -> None:
    from retroflow import protocols

    missing = protocols.missing_members(component, getattr(protocols, protocol))
    if missing:
        raise ComponentError(
            f"{where}: {type(component).__name__} is no {protocol}, it lacks {', '.join(missing)} "
            f"(retroflow.{protocol} has defaults for some: inherit from it)."
        )


def create_corpus(options: Mapping[str, Any]) -> "CheckedCorpus":
    """Make the corpus that a recipe's block names, behind the checks of its documents; raises as `create`."""
    from retroflow.corpus.checked import CheckedCorpus

    name = options["name"]
    return CheckedCorpus(create(CORPORA, options), name=name, entry=CORPORA.entry(name))


def create_embedder(options: Mapping[str, Any]) -> "CheckedEmbedder":
    """Make the embedder that a recipe's block names, behind the checks of its answers; raises as `create`."""
    from retroflow.embedding.checked import CheckedEmbedder

    name = options["name"]
    return CheckedEmbedder(create(EMBEDDERS, options), name=name, entry=EMBEDDERS.entry(name))


def retriever_words(text: str, *others: str) -> list[str]:
    """Split "a,b:KEY=X,Y,c" at the commas before a retriever's name, or another's: faiss's options have commas, too."""
    words: list[str] = []
    names = {*RETRIEVERS.names(), *others}
    for part in text.split(","):
        if words and ":" in words[-1] and part.partition(":")[0].strip() not in names:
            words[-1] += f",{part}"
        elif part.strip():
            words.append(part.strip())
    return words


def retriever_section(word: str, argument: str) -> dict[str, Any]:
    """Return the section that a word describes: a name, or with options "faiss:build.factory=HNSW32:search.nprobe=4".

    Args:
        word: the word.
        argument: the name of the argument that has it, for messages.

    Returns:
        Name and all options.

    Raises:
        UsageError: there is no such retriever.
        RecipeError: there is no such option, or it cannot have the value.
    """
    from retroflow.options.fitting import suggest
    from retroflow.recipe.loading import load_options

    name, *options = word.split(":")
    if name not in RETRIEVERS.names():
        raise UsageError(
            f"{argument}='{word}': there is no such retriever.{suggest(name, RETRIEVERS.names())} Known: "
            f"{', '.join(RETRIEVERS.names())}. Options follow as in faiss:search.nprobe=4."
        )
    return {"name": name, **load_options(recipe_schema().slots["retriever"], name, options)}


def create_retriever(options: Mapping[str, Any]) -> "CheckedRetriever":
    """Make the retriever that a recipe's block names, without an index, behind its checks; raises as `create`."""
    from retroflow.retrieval.checked import CheckedRetriever

    return CheckedRetriever(create(RETRIEVERS, options), owner=owner_of_retriever(options["name"]))


def owner_of_retriever(name: str) -> str:
    """A retriever with its distribution, as messages and a saved index have it: "annoy (retroflow-annoy 0.1.0)"."""
    return f"{name} ({RETRIEVERS.origin(name)})"
