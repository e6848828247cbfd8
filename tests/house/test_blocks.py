"""Every block of commands and of Python in the pages is run (tests/docs), or says that it is not, and is checked here.

A block titled "checked, not run" is parsed: its commands by the command line's own parser, its recipe values against
the recipes as they are shipped, its Python by the compiler, and the modules that it imports are there. What `pip
install` names is in pyproject.toml.
"""

import ast
import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from retroflow.cli.main import build_app
from retroflow.components import recipe_schema
from retroflow.recipe import load
from retroflow.recipe.shipped import shipped_recipes
from tests.house.blocks import LANGUAGES, PAGES, RUN_ELSEWHERE, Block, all_blocks, blocks_of, retroflow_commands
from tests.house.tree import ROOT

PLUGINS = {
    name
    for path in (ROOT / "plugins").glob("*/pyproject.toml")
    for table in tomllib.loads(path.read_text(encoding="utf-8"))["project"].get("entry-points", {}).values()
    for name in table
} | {"hyperplanes"}
"""Names of components that need not be installed where these tests run."""


def test_every_block_names_its_language_and_a_title_is_one_of_two() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("\n```") == 2 * len(blocks_of(page)), f"{page.name}: a fence that is not understood"
        for block in blocks_of(page):
            place = f"{block.page}:{block.line}"
            assert block.language in LANGUAGES, f"{place}: name the language of the block"
            assert re.fullmatch(r"|run by CI|checked, not run: [a-z].+", block.title), place


def test_most_blocks_are_run() -> None:
    # A generated page has the commands of its experiments, which take minutes each.
    blocks = [block for block in all_blocks("bash", "python") if not block.page.endswith("results.md")]
    run = [block for block in blocks if block.is_run]
    assert len(run) >= 75 and len(run) / len(blocks) > 0.7, f"{len(run)} of {len(blocks)}"


@pytest.mark.parametrize("page", sorted(RUN_ELSEWHERE))
def test_a_page_whose_python_is_run_elsewhere_is_named_there(page: str) -> None:
    text = (ROOT / RUN_ELSEWHERE[page]).read_text(encoding="utf-8")
    assert Path(page).name in text or "writing-a-{kind}.md" in text


def not_run() -> list[Block]:
    texts = [block for block in all_blocks("text") if any(retroflow_commands(block))]
    return [*(block for block in all_blocks("bash") if not block.is_run), *texts]


@pytest.mark.parametrize("block", not_run(), ids=lambda block: f"{block.page}:{block.line}")
def test_commands_that_are_not_run_would_be_accepted(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for line in block.commands:
        for script in re.findall(r"python (\S+\.py)", line):
            assert (ROOT / script).is_file(), f"{block.page}:{block.line}: there is no {script}"
        check_pip(line)
    for words in retroflow_commands(block):
        parse(words)
        check_recipe(words)
    if block.title == "run by CI":
        script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
        for command in ("ruff check .", "mypy --strict retroflow", "lint-imports"):
            assert command in script and command in block.text


@pytest.mark.parametrize(
    "block",
    [block for block in all_blocks("python") if not block.is_run],
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_python_that_is_not_run_compiles_and_imports_what_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import):
            for name in node.names:
                assert importlib.util.find_spec(name.name), name.name
        elif isinstance(node, ast.ImportFrom):
            assert importlib.util.find_spec(str(node.module)), node.module


@pytest.mark.parametrize(
    "block",
    [block for block in all_blocks("bash") if block.is_run and "--recipe" in block.text],
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_overrides_fit_the_recipes_as_they_are_shipped(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in retroflow_commands(block):
        check_recipe(words)


def parse(words: list[str]) -> None:
    """Refuse what the command line refuses: a command, a flag or a value that does not exist."""
    group = typer.main.get_command(build_app(words))
    context, rest = group.make_context("retroflow", list(words)), list(words)
    while rest and hasattr(group, "resolve_command"):
        name, group, rest = group.resolve_command(context, rest)
        context = group.make_context(name, list(rest), parent=context)
    lists = [value for value in context.params.values() if isinstance(value, list | tuple)]
    unknown = [word for value in lists for word in value if re.match(r"--?[a-z]", str(word))]  # among overrides
    assert not unknown, f"retroflow {shlex.join(words)}: there is no {unknown[0]}"


def check_recipe(words: list[str]) -> None:
    """Load the recipe that a command names, with its overrides, if it is one of the repository's."""
    if "--recipe" not in words or words[0] == "db":
        return
    name = words[words.index("--recipe") + 1]
    recipe = shipped_recipes().get(name, Path(name))
    if not recipe.is_file():
        return  # one of the reader's own
    overrides = [word for word in words if re.match(r"[\w.]+=", word)]
    named = re.findall(r"name[:=] ?([\w-]+)", " ".join([recipe.read_text(encoding="utf-8"), *overrides]))
    if not PLUGINS & set(named):
        load(recipe, overrides, schema=recipe_schema())


def check_pip(line: str) -> None:
    """A line that installs names extras and packages that exist."""
    if not (found := re.match(r"pip install (.*?)(?: &&|$)", line)):
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    words = shlex.split(found[1])
    for word in words:
        for extra in re.findall(r"\[(.*)\]", word):
            assert set(extra.split(",")) <= set(project["optional-dependencies"]), line
        if word.startswith("."):
            assert (ROOT / word.partition("[")[0]).is_dir(), line
    if "-c" in words:
        assert (ROOT / words[words.index("-c") + 1]).is_file()


def test_the_check_refuses_what_does_not_exist() -> None:
    with pytest.raises(Exception, match="--recip"):
        parse(["fit", "--recip", "R"])
    with pytest.raises(Exception, match="maxsteps"):
        check_recipe(["fit", "--recipe", str(ROOT / "recipes" / "retro_small.yaml"), "trainer.maxsteps=1"])
    with pytest.raises(AssertionError, match="nothere"):
        check_pip('pip install ".[nothere]"')
    assert sys.modules["tests.house.blocks"].shlex_comment('a "b # c" # d') == 'a "b # c" '
