"""`retroflow recipe show`, `check`, `schema`, `list` and `copy`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from retroflow.recipe import Recipe

app = typer.Typer(help="Look at a recipe: every value with its origin, or every error at once.", no_args_is_help=True)

RecipePath = Annotated[Path, typer.Option("--recipe", help="Recipe file (YAML), or the name of an installed one.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as neighbours.k=4.")]


@app.command("show", context_settings={"ignore_unknown_options": True})
def show(
    recipe: RecipePath,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print every value of a recipe with its origin, defaults included."""
    loaded = _load(recipe, overrides)
    if as_json:
        shown = {"recipe": str(loaded.path), "values": loaded.values, "origins": dict(loaded.origins)}
        print(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    rows = [(key, _written(_value_at(loaded.values, key)), origin) for key, origin in loaded.origins.items()]
    key_width = max(len(key) for key, _, _ in rows)
    value_width = max(min(len(value), 40) for _, value, _ in rows)
    section = ""
    for key, value, origin in rows:
        if "." in key and key.partition(".")[0] != section:
            section = key.partition(".")[0]
            print()
        print(f"{key:<{key_width}}  {value:<{value_width}}  {origin}")


@app.command("check", context_settings={"ignore_unknown_options": True})
def check(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Check a recipe without importing its components; print all errors at once, exit code 2."""
    from retroflow import components

    loaded = _load(recipe, overrides)
    given = sum(origin != "default" for origin in loaded.origins.values())
    defaults = len(loaded.origins) - given
    named = [f"{registry.kind} {loaded.values[registry.kind]['name']}" for registry in components.KINDS]
    print(f"{loaded.path}: OK: {', '.join(named)}; {given} values given, {defaults} defaults.")
    for registry in components.KINDS:
        name = loaded.values[registry.kind]["name"]
        fault = components.find_fault(registry, name)
        if fault:
            print(f"  to run it here: {fault}")
        for sentence in registry.passed_over(name):
            print(f"  warning: {sentence}")


@app.command("list")
def list_recipes() -> None:
    """List the recipes that are installed with retroflow."""
    from retroflow.recipe.shipped import shipped_recipes, summary_of

    shipped = shipped_recipes()
    width = max(len(name) for name in shipped)
    for name, path in shipped.items():
        print(f"{name:<{width}}  {summary_of(path)}")


@app.command("copy")
def copy(
    name: Annotated[str, typer.Argument(help="Name of an installed recipe, such as retro_small.")],
    target: Annotated[Path | None, typer.Argument(help="File or folder to write. Default: NAME.yaml here.")] = None,
) -> None:
    """Copy an installed recipe in order to change it."""
    from retroflow.recipe.shipped import copy_recipe

    for file in copy_recipe(name, target or Path()):
        print(file)


@app.command("schema", context_settings={"ignore_unknown_options": True})
def schema(
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="Only the components that this recipe names. Default: all.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Print the options of recipes as a JSON Schema, for editors."""
    from retroflow.components import recipe_schema
    from retroflow.errors import UsageError
    from retroflow.recipe.json_schema import json_schema

    if recipe is None and overrides:
        raise UsageError(f"recipe schema: {overrides[0]} is given without a recipe; add --recipe R, or leave it out.")
    layout = recipe_schema()
    values = _load(recipe, overrides).values if recipe is not None else None
    named = {section: values[section]["name"] for section in layout.slots} if values is not None else None
    print(json.dumps(json_schema(layout, named), indent=2, ensure_ascii=False))


def _load(recipe: Path, overrides: list[str] | None) -> "Recipe":
    from retroflow.components import recipe_schema
    from retroflow.recipe import load

    return load(recipe, overrides or [], schema=recipe_schema())


def _value_at(values: dict[str, Any], dotted: str) -> Any:
    value: Any = values
    for part in dotted.split("."):
        value = value[part]
    return value


def _written(value: Any) -> str:
    """Return a value as one line of YAML flow style, which JSON is."""
    return value if isinstance(value, str) and value.isprintable() and value else json.dumps(value, ensure_ascii=False)
