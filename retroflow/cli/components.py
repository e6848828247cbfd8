"""`retroflow components`: every component by kind, its distribution, and what it lacks."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from retroflow.registry import Registry

_MEANING = (
    "available: the module exists and defines the component, its parameters can be options of a recipe, and the "
    "packages that it imports are installed. Nothing was loaded; `retroflow doctor` loads every component."
)


def components(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """List every component by kind: name, distribution, and whether its files show that it can be used here."""
    from retroflow.components import KINDS
    from retroflow.distributions import unreadable

    listed = {registry.kind: [_describe(registry, name) for name in registry.names()] for registry in KINDS}
    passed_over = [*unreadable(), *(sentence for registry in KINDS for sentence in registry.passed_over())]
    if as_json:
        print(json.dumps(listed | {"passed_over": passed_over}, indent=2))
        return
    rows = [row for kind_rows in listed.values() for row in kind_rows]
    name_width, owner_width = (max(len(row[column]) for row in rows) for column in ("name", "owner"))
    for kind, kind_rows in listed.items():
        print(f"{kind}:")
        for row in kind_rows:
            state = "available" if row["available"] else row["remedy"]
            print(f"  {row['name']:<{name_width}}  {row['owner']:<{owner_width}}  {state}")
    if passed_over:
        print("ignored:", *(f"  {sentence}" for sentence in passed_over), sep="\n")
    print(_MEANING)


def _describe(registry: "Registry[Any]", name: str) -> dict[str, Any]:
    from retroflow.components import find_fault

    fault = find_fault(registry, name)
    owners = " and ".join(claim.owner for claim in registry.claims(name))
    return {"name": name, "owner": owners, "available": fault is None, "remedy": fault}
