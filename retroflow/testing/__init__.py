"""Test suites for authors of plugins: subclass one, say how to make your component, run pytest.

Imported lazily, so that a suite needs nothing that the others need.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retroflow.testing.contract import Contract
    from retroflow.testing.embedder_contract import EmbedderContract
    from retroflow.testing.model_contract import ModelContract
    from retroflow.testing.retriever_contract import RetrieverContract

_SUITES = {
    "Contract": "retroflow.testing.contract",
    "EmbedderContract": "retroflow.testing.embedder_contract",
    "ModelContract": "retroflow.testing.model_contract",
    "RetrieverContract": "retroflow.testing.retriever_contract",
}

__all__ = ["Contract", "EmbedderContract", "ModelContract", "RetrieverContract"]


def __getattr__(name: str) -> Any:
    if name not in _SUITES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_SUITES[name]), name)
