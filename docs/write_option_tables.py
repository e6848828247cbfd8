"""Write the tables of options into the pages of docs/, between `<!-- options: ... -->` and `<!-- end -->`.

Run `python docs/write_option_tables.py` after a change of an option, its range or its docstring.
tests/recipe/test_json_schema.py holds the pages against this script. What a marker names:

- `trainer`: a section of a recipe; `retriever faiss`: a component, nested options with dots
- `generate`, `serve`: the flags of that command
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer

from retroflow.cli.main import build_app
from retroflow.components import recipe_schema
from retroflow.options.types import REQUIRED, Block, block_of
from retroflow.recipe import Slot
from retroflow.recipe.signatures import read_block

DOCS = Path(__file__).resolve().parent
MARKED = re.compile(r"(<!-- options: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def rows(
    block: Block, owner: str = "", parts: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, default, what is allowed and meaning of every option."""
    for name, option in block.options.items():
        if name in parts:
            yield (
                f"`{name}`",
                f"`{{name: {parts[name]}}}`",
                "a section as this one",
                option.description.removesuffix("."),
            )
            continue
        nested = block_of(option.type)
        if nested is not None:
            yield from rows(nested, f"{owner}{name}.")
            continue
        default = "" if option.default is REQUIRED else f"`{json.dumps(option.default)}`".replace('"', "")
        yield f"`{owner}{name}`", default, option.type.describe(), option.description.removesuffix(".")


COMMANDS = ("generate", "serve")


def flags(name: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield the flags of a command."""
    application: Any = typer.main.get_command(build_app([name]))
    command = application.commands[name]
    for option in command.params:
        words = [word for word in (*option.opts, *option.secondary_opts) if word.startswith("--")]
        if not words or words == ["--help"]:
            continue
        shown = option.show_default if isinstance(option.show_default, str) else ""
        if not shown and option.show_default and option.default is not None and not isinstance(option.default, bool):
            shown = f"`{option.default}`"
        yield ", ".join(f"`{word}`" for word in words), shown, "", (option.help or "").removesuffix(".")


def table(named: str) -> str:
    """The table that a marker asks for."""
    if named in COMMANDS:
        lines = ["| flag | default | meaning |", "|---|---|---|"]
        return "\n".join([*lines, *[f"| {name} | {default} | {text} |" for name, default, _, text in flags(named)], ""])
    section, _, component = named.partition(" ")
    part = recipe_schema().sections[section]
    parts: Mapping[str, str] = {}
    if isinstance(part, Slot):
        entry = part.registry.entry(component)
        block, parts = read_block(entry.target, entry.owner, frozenset(part.derived)), entry.parts
    else:
        block = read_block(part.target, "retroflow")
    lines = ["| option | default | allowed | meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *[f"| {' | '.join(row)} |" for row in rows(block, parts=parts)], ""])


def written(page: str) -> str:
    """The text of a page with its tables as they should be."""
    return MARKED.sub(lambda found: f"{found[1]}{table(found[2])}{found[3]}", page)


def main() -> None:
    for path in sorted(DOCS.glob("*.md")):
        before = path.read_text(encoding="utf-8")
        after = written(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(path.name)


if __name__ == "__main__":
    main()
