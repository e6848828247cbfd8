"""The protocols that components implement: Corpus, Embedder, Retriever, RetrievalModel, ModelConfig, Tracker.

Third-party packages implement them and enter by the entry-point groups `retroflow.corpora`, `retroflow.embedders`,
`retroflow.retrievers`, `retroflow.models` and `retroflow.trackers`. `retroflow.testing` has a suite for each.

Imported lazily, so that a model's contract needs no numpy and a recipe is checked without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retroflow.protocols.corpus import Corpus, Counts, Document, EmbeddedCorpus, Split
    from retroflow.protocols.model import GenerationCache, ModelConfig, RetrievalModel
    from retroflow.protocols.retrieval import (
        PROTOCOL_VERSION,
        AddsKeys,
        BuildsInShards,
        Capabilities,
        ChecksVectors,
        Embedder,
        Float32Array,
        IndexOutline,
        Int64Array,
        KeySource,
        Metric,
        Neighbours,
        OutlinesIndex,
        QueriedBy,
        Queries,
        RemovesKeys,
        Retriever,
        ScoresKeys,
        TextSource,
        VectorSource,
    )
    from retroflow.protocols.tracker import MakeExamples, NeighbourExample, ReportTable, Summary, TrackedRun, Tracker

__all__ = [
    "PROTOCOL_VERSION",
    "AddsKeys",
    "BuildsInShards",
    "Capabilities",
    "ChecksVectors",
    "Corpus",
    "Counts",
    "Document",
    "EmbeddedCorpus",
    "Embedder",
    "Float32Array",
    "GenerationCache",
    "IndexOutline",
    "Int64Array",
    "KeySource",
    "MakeExamples",
    "Metric",
    "ModelConfig",
    "NeighbourExample",
    "Neighbours",
    "OutlinesIndex",
    "QueriedBy",
    "Queries",
    "RemovesKeys",
    "ReportTable",
    "RetrievalModel",
    "Retriever",
    "ScoresKeys",
    "Split",
    "Summary",
    "TextSource",
    "TrackedRun",
    "Tracker",
    "VectorSource",
]

_FILES = {
    "corpus": ("Corpus", "Counts", "Document", "EmbeddedCorpus", "Split"),
    "model": ("GenerationCache", "ModelConfig", "RetrievalModel"),
    "tracker": ("MakeExamples", "NeighbourExample", "ReportTable", "Summary", "TrackedRun", "Tracker"),
}


def missing_members(component: object, protocol: type) -> list[str]:
    """Name the members of a protocol that a component lacks."""
    own = [base for base in protocol.__mro__ if base.__module__.startswith(__name__)]
    names = {name: None for base in own for name in (*base.__annotations__, *vars(base)) if not name.startswith("_")}
    return [name for name in names if not hasattr(component, name)]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    file = next((file for file, names in _FILES.items() if name in names), "retrieval")
    found = getattr(importlib.import_module(f"{__name__}.{file}"), name)
    globals()[name] = found
    return found
