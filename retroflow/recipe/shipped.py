"""The recipes that come with the package, by name."""

import re
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from retroflow.errors import RecipeError


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that is installed with retroflow."""
    folder = Path(str(files("retroflow"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(recipe: Path | str) -> Path:
    """Return the file of a recipe: a path, or the name of one that is installed with retroflow.

    A file that exists goes first. A word without a folder and without an ending is a name.

    Raises:
        RecipeError: it is a name, and no such recipe is installed.
    """
    path = Path(recipe)
    if not re.fullmatch(r"[\w-]+", str(recipe)) or path.is_file():
        return path
    shipped = shipped_recipes()
    if path.name in shipped:
        return shipped[path.name]
    near = get_close_matches(path.name, shipped, n=1)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    raise RecipeError(
        f'There is no recipe file "{path}" here, and no recipe of that name is installed.{hint} Installed: '
        f"{', '.join(shipped)}. Give one of these, or the path of a YAML file."
    )


def summary_of(recipe: Path) -> str:
    """The first line of a recipe's head: what it trains."""
    with recipe.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()


def copy_recipe(name: str, target: Path) -> list[Path]:
    """Copy an installed recipe, and beside it the one that it extends; returns the files that were written.

    Args:
        name: of the recipe.
        target: a file, or a folder for NAME.yaml.

    Raises:
        RecipeError: no such recipe, or a file is there already.
    """
    source = find_recipe(name)
    file = target / source.name if target.is_dir() else target
    extended = re.search(r"^extends: *(\S+)", source.read_text(encoding="utf-8"), re.MULTILINE)
    copies = {file: source}
    if extended:
        copies[file.parent / extended[1]] = source.parent / extended[1]
    for written in copies:
        if written.exists():
            raise RecipeError(f'"{written}" exists already. Name another file or folder, or remove it first.')
    if not file.parent.is_dir():
        raise RecipeError(f'"{file}": there is no folder "{file.parent}". Make it, or name another.')
    for written, original in copies.items():
        written.write_text(original.read_text(encoding="utf-8"), encoding="utf-8")
    return list(copies)
