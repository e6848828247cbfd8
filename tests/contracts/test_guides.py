"""The guides to write a model, a corpus and a tracker are followed literally: their plugins pass, and train together."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from retroflow.testing import CorpusContract, ModelContract, TrackerContract
from tests.cli.conftest import write_recipe
from tests.house.tree import ROOT

pytestmark = pytest.mark.timeout(900)  # on a busy machine: four commands that import torch

GUIDES = {"model": "bag", "corpus": "sqlite", "tracker": "csv"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three plugins and their tests, as `pip install -e` would make them known."""
    folder = tmp_path_factory.mktemp("plugins")
    for kind, name in GUIDES.items():
        text = (ROOT / "docs" / f"writing-a-{kind}.md").read_text(encoding="utf-8")
        project, code, test = re.findall(r"```(?:toml|python)\n(.*?)```", text, re.DOTALL)
        (folder / f"retroflow_{name}.py").write_text(code, encoding="utf-8")
        (folder / f"test_{name}.py").write_text(test, encoding="utf-8")
        group, entry = re.findall(r'entry-points."(.*?)"\]\n(.*)', project)[0]
        about = folder / f"retroflow_{name}-0.1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: retroflow-{name}\nVersion: 0.1.0\n")
        (about / "entry_points.txt").write_text(f"[{group}]\n{entry.replace(chr(34), '')}\n")
    return folder


def run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    command = [sys.executable, "-m", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def tested(installed: Path) -> "subprocess.CompletedProcess[str]":
    """The plugins' own tests, which also leave the database that they read."""
    return run(installed, "pytest", "-q", "-p", "no:cacheprovider", str(installed))


def test_the_plugins_of_the_guides_pass_their_contracts(tested: "subprocess.CompletedProcess[str]") -> None:
    ended = tested
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]
    rules = sum(len(suite.rules()) for suite in (CorpusContract, ModelContract, TrackerContract))
    passed, *skipped = (int(number) for number in re.findall(r"(\d+) (?:passed|skipped)", ended.stdout))
    assert passed + sum(skipped) == rules


@pytest.mark.usefixtures("tested")
def test_a_run_of_three_plugins_trains_and_is_checked(installed: Path) -> None:
    recipe = write_recipe(installed, "tiny")
    text = recipe.read_text(encoding="utf-8")
    blocks = re.split(r"(?m)^(?=\w+:)", text)
    kept = [block for block in blocks if not block.startswith(("corpus:", "model:", "tracker:"))]
    kept += ["corpus: {name: sqlite, path: notes.db, valid_share: 0.3}\n", "model: {name: bag, width: 16}\n"]
    recipe.write_text("".join(kept) + "tracker: {name: csv, folder: mirror}\n", encoding="utf-8")
    ended = run(installed, "retroflow", "fit", "--recipe", str(recipe))
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-3000:]
    (mirrored,) = (installed / "mirror").glob("*.csv")
    assert "train/loss" in mirrored.read_text(encoding="utf-8")
    ended = run(installed, "retroflow", "components", "check", "sqlite", "path=notes.db", "valid_share=0.3")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r'corpus "sqlite" of retroflow-sqlite 0.1.0: \d+ pass, 0 fail, 0 skip', ended.stdout)
