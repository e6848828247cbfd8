from collections.abc import Iterator

import pytest

from retroflow.recipe import signatures, source
from tests.recipe.parts import load_text

__all__ = ["load_text"]


@pytest.fixture(autouse=True)
def _forget_sources() -> Iterator[None]:
    """Each test writes its own modules under the same names."""
    yield
    for cache in (signatures.read_block, source.find_definition, source._parse):
        cache.cache_clear()
