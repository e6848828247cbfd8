"""A run of six steps, made once for the tests of this folder; to be copied by who changes more than comparisons."""

from pathlib import Path

import pytest

import retroflow as rf
from tests.cli.conftest import write_recipe


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rf.fit(rf.load_recipe(write_recipe(tmp_path_factory.mktemp("comparison"), "tiny"))).folder
