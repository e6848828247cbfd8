"""The README's commands are the ones that are promised, and CI runs them as they stand there."""

import os
import re

from tests.house.tree import ROOT

MAIN = 'pip install -c constraints.txt -e ".[all]" && retroflow fit --recipe recipes/retro_small.yaml'
TESTS = 'pip install -c constraints.txt -e ".[all,dev]" && pytest'
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_both_commands_stand_in_the_readme() -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    assert lines.count(MAIN) == 1
    assert lines.count(TESTS) == 1


def test_ci_reads_them_from_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert "README.md" in text
    assert MAIN not in text
    assert TESTS not in text


def test_links_within_the_repository_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
