"""The commands and the Python of each page run, in a folder with something small under each name that the pages use.

`fit` runs as `fit --dry-run` and `bench` as `bench --explain`, since other tests train and measure; what measures a
model measures two sequences. What is not run,
and how it is checked: tests/house/test_blocks.py.
"""

from pathlib import Path

import pytest
import torch

from tests.docs.workplace import Shell
from tests.house.blocks import PAGES, RUN_ELSEWHERE, Block, blocks_of
from tests.house.tree import ROOT

LARGE = ("docs/paper.md",)
"""Pages whose Python makes a model of 172 million weights: here without any memory for them."""


def blocks_to_run(page: Path) -> list[Block]:
    blocks = [block for block in blocks_of(page) if block.language in {"bash", "python"} and block.is_run]
    return [block for block in blocks if block.language == "bash" or block.page not in RUN_ELSEWHERE]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks_to_run(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_blocks_of_a_page_run(page: Path, shell: Shell) -> None:
    names: dict[str, object] = {}
    for block in blocks_to_run(page):
        if block.language == "bash":
            for line in block.commands:
                shell.run(line)
            continue
        code = compile("\n" * block.line + shell.smaller(block.text), block.page, "exec")
        with torch.device("meta" if block.page in LARGE else "cpu"):
            exec(code, names)
