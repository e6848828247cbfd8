"""docs/writing-a-retriever.md is followed literally: its blocks become files, and its plugin passes the suite."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

from retroflow.protocols import Capabilities
from retroflow.testing import RetrieverContract

GUIDE = Path(__file__).parents[2] / "docs" / "writing-a-retriever.md"
FILES = ("pyproject.toml", "retroflow_hyperplanes.py", "test_hyperplanes.py")


def test_the_plugin_of_the_guide_passes_the_contract_suite(tmp_path: Path) -> None:
    blocks = re.findall(r"```(?:toml|python)\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == len(FILES), "the guide shows one block a file, in this order"
    for name, text in zip(FILES, blocks, strict=True):
        (tmp_path / name).write_text(text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]


def test_the_guide_explains_every_capability() -> None:
    rows = "".join(line for line in GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith("| `"))
    for field in dataclasses.fields(Capabilities):
        assert f"`{field.name}`" in rows


def test_the_guide_knows_how_many_rules_there_are() -> None:
    assert f"One test a rule, {len(RetrieverContract.rules())} in all" in GUIDE.read_text(encoding="utf-8")
