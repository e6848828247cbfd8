"""retroflow: train, evaluate and run retrieval-enhanced language models (RETRO).

    import retroflow as rf

    run = rf.fit(rf.load_recipe("retro_small", "trainer.max_steps=200"))
    print(run.report["validation"]["on"]["bits_per_byte"])
    lm = rf.load(run.folder)
    print(lm.generate("def forward(").text)

Each name below is imported on first use: importing this package loads neither torch nor a search library (checked by
tests/house).
"""

import importlib
from typing import TYPE_CHECKING, Any

from retroflow.integrations.transformers_registration import register_when_imported
from retroflow.version import __version__

if TYPE_CHECKING:
    from retroflow.api import (
        compare,
        embedder,
        evaluate,
        fit,
        load,
        load_recipe,
        open_run,
        prepare,
        retriever,
        score,
    )
    from retroflow.benchmarking.front import bench
    from retroflow.database.database import Database
    from retroflow.generation.language_model import LanguageModel
    from retroflow.integrations.evaluating import evaluate_tasks
    from retroflow.integrations.transformers_generate import retroflow_generate
    from retroflow.model.config import RetroConfig
    from retroflow.model.retro import Retro
    from retroflow.pictures.curves import curve, training_curves
    from retroflow.pictures.inspected import inspect
    from retroflow.pictures.report import report_page
    from retroflow.protocols import (
        Capabilities,
        Corpus,
        Document,
        Embedder,
        ModelConfig,
        Neighbours,
        RetrievalModel,
        Retriever,
        Tracker,
    )
    from retroflow.runs.run import Run

_HOMES = {
    "load_recipe": "retroflow.api",
    "prepare": "retroflow.api",
    "fit": "retroflow.api",
    "open_run": "retroflow.api",
    "evaluate": "retroflow.api",
    "compare": "retroflow.api",
    "evaluate_tasks": "retroflow.integrations.evaluating",
    "retroflow_generate": "retroflow.integrations.transformers_generate",
    "curve": "retroflow.pictures.curves",
    "bench": "retroflow.benchmarking.front",
    "training_curves": "retroflow.pictures.curves",
    "load": "retroflow.api",
    "retriever": "retroflow.api",
    "score": "retroflow.api",
    "report_page": "retroflow.pictures.report",
    "inspect": "retroflow.pictures.inspected",
    "embedder": "retroflow.api",
    "Run": "retroflow.runs.run",
    "LanguageModel": "retroflow.generation.language_model",
    "Database": "retroflow.database.database",
    "Retro": "retroflow.model.retro",
    "RetroConfig": "retroflow.model.config",
    "Retriever": "retroflow.protocols",
    "Embedder": "retroflow.protocols",
    "Neighbours": "retroflow.protocols",
    "Capabilities": "retroflow.protocols",
    "Tracker": "retroflow.protocols",
    "Corpus": "retroflow.protocols",
    "Document": "retroflow.protocols",
    "ModelConfig": "retroflow.protocols",
    "RetrievalModel": "retroflow.protocols",
}

__all__ = [
    "Capabilities",
    "Corpus",
    "Database",
    "Document",
    "Embedder",
    "LanguageModel",
    "ModelConfig",
    "Neighbours",
    "RetrievalModel",
    "Retriever",
    "Retro",
    "RetroConfig",
    "Run",
    "Tracker",
    "__version__",
    "bench",
    "compare",
    "curve",
    "embedder",
    "evaluate",
    "evaluate_tasks",
    "fit",
    "inspect",
    "load",
    "load_recipe",
    "open_run",
    "prepare",
    "report_page",
    "retriever",
    "retroflow_generate",
    "score",
    "training_curves",
]

register_when_imported()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'retroflow' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    found = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
