"""The workplace is made once; each page gets a copy of it."""

import os
import shutil
from pathlib import Path

import pytest

from tests.docs.workplace import Shell, use_recipes_of, write_workplace


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("bm25s", "datasets", "faiss", "matplotlib", "pyarrow", "scann", "zstandard"):
        pytest.importorskip(name)  # the pages speak of all extras
    folder, here = tmp_path_factory.mktemp("workplace"), Path.cwd()
    try:
        write_workplace(folder)
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def shell(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    here = tmp_path / "here"
    shutil.copytree(workplace, here, symlinks=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("RETROFLOW_TASK_DATA", str(here / "data"))
    use_recipes_of(here, monkeypatch)
    return Shell(monkeypatch, capfd)
