"""Keep Hugging Face's libraries off the network, for commands that must not download."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_MODULES = ("huggingface_hub.constants", "datasets.config")
"""These modules read the environment once at import; afterwards only this attribute counts."""

_ATTRIBUTE = "HF_HUB_OFFLINE"


@contextmanager
def no_downloads() -> Iterator[None]:
    """Treat what is not on this machine as missing."""
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    modules: dict[str, Any] = {name: sys.modules[name] for name in _MODULES if name in sys.modules}
    attributes = {name: getattr(module, _ATTRIBUTE) for name, module in modules.items()}
    os.environ.update(dict.fromkeys(_VARIABLES, "1"))
    for module in modules.values():
        setattr(module, _ATTRIBUTE, True)
    try:
        yield
    finally:
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        for name in _MODULES:  # a module imported meanwhile has read the variables above
            if name in sys.modules:
                was = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
                setattr(sys.modules[name], _ATTRIBUTE, attributes.get(name, was))
