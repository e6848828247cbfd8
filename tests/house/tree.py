"""The files the rules are about."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = {".py", ".md", ".toml", ".yaml", ".txt", ".cfg", ".sh", ""}
SKIPPED = {"build", "dist", "venv", "wandb"}


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def library() -> list[Path]:
    """Return the Python files of the package and of the plugins, without their tests."""
    plugins = [path for path in files("plugins", "*.py") if "tests" not in path.parts]
    return [*files("retroflow", "*.py"), *plugins]


def files(folder: str, pattern: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob(pattern) if not _is_generated(path))


def texts() -> list[Path]:
    """Return everything in the repository that a person reads."""
    top = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]  # a file in a work tree
    folders = ("retroflow", "plugins", "recipes", "tests", "docs", ".ci")
    inner = [path for folder in folders for path in files(folder, "*") if path.is_file()]
    return [path for path in (*top, *inner) if path.suffix in TEXT and path.name != "LICENSE"]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _is_generated(path: Path) -> bool:
    inner = path.relative_to(ROOT).parts
    return any(
        part in SKIPPED or part.endswith(".egg-info") or part.startswith((".", "__pycache__")) for part in inner[1:]
    )
