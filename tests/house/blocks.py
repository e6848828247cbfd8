"""The blocks of code of the pages, and what is done with each."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.house.tree import ROOT

PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "plugins").glob("*/README.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    ]
)
LANGUAGES = {"bash", "json", "python", "text", "toml", "yaml"}
RUN_ELSEWHERE = {
    "docs/hugging-face.md": "tests/integrations/test_transformers_model.py",
    "docs/index.md": "tests/test_api.py",
    "docs/model.md": "tests/model/test_model_page.py",
    "docs/retrofit.md": "tests/pretrained/test_retrofit_folder.py",
    "docs/serving.md": "tests/serving/test_clients.py",
    "docs/writing-a-corpus.md": "tests/contracts/test_guides.py",
    "docs/writing-a-model.md": "tests/contracts/test_guides.py",
    "docs/writing-a-retriever.md": "tests/contracts/test_writing_a_retriever.py",
    "docs/writing-a-tracker.md": "tests/contracts/test_guides.py",
    "docs/writing-an-embedder.md": "tests/embedding/test_docs.py",
}
"""Pages whose Python a test of its own runs, beside the room that it is about."""
FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        page: relative to the repository.
        line: of the page, where the block begins.
        language: of the fence.
        title: of the fence; "checked, not run: WHY" for a block that is not run, "run by CI".
        text: without the fence.
    """

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def is_run(self) -> bool:
        return not self.title

    @property
    def commands(self) -> list[str]:
        """Its lines without comments and empty ones, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        stripped = [shlex_comment(line).strip() for line in lines]
        return [line for line in stripped if line]


def shlex_comment(line: str) -> str:
    """A line without its comment; a # inside quotes or a word begins none."""
    return re.sub(r"""^((?:[^'"#]|'[^']*'|"[^"]*"|(?<=\S)#)*?)(?:(?<!\S)#.*)?$""", r"\1", line)


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(str(page.relative_to(ROOT)), text[: found.start()].count("\n") + 1, found[1], found[2] or "", found[4])
        for found in FENCE.finditer(text)
    ]


def all_blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if block.language in languages]


def retroflow_commands(block: Block) -> Iterator[list[str]]:
    """The words after each `retroflow` of a block, also behind srun, in a loop or after a pipe."""
    for line in block.commands:
        for part in re.split(r"&&|\|\||[|;&](?!&)", re.sub(r"\d?>+ ?\S+|< \S+", "", line)):
            if found := re.search(r"(?:^|\s)retroflow (.+)", part):
                yield shlex.split(found[1])
