"""Test suites for authors of plugins: subclass one, say how to make your component, run pytest.

Imported lazily, so that a suite needs nothing that the others need.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retroflow.testing.contract import Contract
    from retroflow.testing.corpus_contract import CorpusContract
    from retroflow.testing.embedder_contract import EmbedderContract
    from retroflow.testing.model_contract import ModelContract
    from retroflow.testing.retriever_contract import RetrieverContract
    from retroflow.testing.tracker_contract import TrackerContract

_SUITES = {
    "Contract": "retroflow.testing.contract",
    "CorpusContract": "retroflow.testing.corpus_contract",
    "EmbedderContract": "retroflow.testing.embedder_contract",
    "ModelContract": "retroflow.testing.model_contract",
    "RetrieverContract": "retroflow.testing.retriever_contract",
    "TrackerContract": "retroflow.testing.tracker_contract",
}

__all__ = [
    "Contract",
    "CorpusContract",
    "EmbedderContract",
    "ModelContract",
    "RetrieverContract",
    "TrackerContract",
]


def __getattr__(name: str) -> Any:
    if name not in _SUITES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_SUITES[name]), name)
