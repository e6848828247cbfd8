"""Make transformers' auto classes open our models, as soon as transformers is imported, before or after us.

transformers looks for no entry points, so `import retroflow` must come first. It loads neither transformers nor torch:
a finder waits for the import of transformers' table of configurations.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_TABLE = "transformers.models.auto.configuration_auto"


def register_when_imported() -> None:
    """Register our configuration with transformers: at once if its table is loaded, else when it will be."""
    if _TABLE in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Finder())


def _register() -> None:
    importlib.import_module("retroflow.integrations.transformers_config").register()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module once, as others would, and registers after it was loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Give the spec of transformers' table of configurations; None of any other module."""
        if fullname != _TABLE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            _register()

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec
