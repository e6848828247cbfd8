"""`retroflow components`: every component by kind, where it comes from, and what is missing to use it."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from retroflow.registry import Registry


def components(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """List every component by kind: name, distribution, and whether it can be used here."""
    from retroflow.components import KINDS

    listed = {registry.kind: [_describe(registry, name) for name in registry.names()] for registry in KINDS}
    if as_json:
        print(json.dumps(listed, indent=2))
        return
    rows = [row for kind_rows in listed.values() for row in kind_rows]
    name_width, owner_width = (max(len(row[column]) for row in rows) for column in ("name", "owner"))
    for kind, kind_rows in listed.items():
        print(f"{kind}:")
        for row in kind_rows:
            state = "available" if row["available"] else row["remedy"]
            print(f"  {row['name']:<{name_width}}  {row['owner']:<{owner_width}}  {state}")


def _describe(registry: "Registry[Any]", name: str) -> dict[str, Any]:
    remedy = registry.remedy(name)
    owners = " and ".join(claim.owner for claim in registry.claims(name))
    return {"name": name, "owner": owners, "available": remedy is None, "remedy": remedy}
