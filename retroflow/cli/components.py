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


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

app = typer.Typer(invoke_without_command=True)


@app.callback()
def components(context: typer.Context, as_json: AsJson = False) -> None:
    """List every component by kind: name, distribution, and whether its files show that it can be used here."""
    if context.invoked_subcommand is None:
        _list(as_json)


@app.command(context_settings={"ignore_unknown_options": True})
def check(
    name: Annotated[str, typer.Argument(help="The component's name, as in a recipe.", show_default=False)],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[OPTION=VALUE]...", help="Its options, such as search.nprobe=4.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Needed where components of several kinds have the name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the contract of a component, built-in or a plugin's: one line a rule; exit with 1 if one is broken."""
    from retroflow.components import find_fault, recipe_schema
    from retroflow.errors import BrokenPluginError
    from retroflow.recipe.loading import load_options
    from retroflow.testing.registered import check as outcomes_of

    meant = _kind_of(name, kind)
    slot = next(slot for slot in recipe_schema().slots.values() if slot.registry.kind == meant)
    slot.registry.entry(name)  # refuses a name that it does not have
    fault = find_fault(slot.registry, name)
    if fault is not None:
        raise BrokenPluginError(fault)
    given = load_options(slot, name, options or [])
    outcomes = []
    for outcome in outcomes_of(slot.registry.kind, name, given):
        outcomes.append(outcome)
        if not as_json:
            why = f": {outcome.why.splitlines()[0]}" if outcome.why else ""
            print(f"{outcome.outcome}  {outcome.rule}{why}", flush=True)
    counts = {each: sum(outcome.outcome == each for outcome in outcomes) for each in ("pass", "fail", "skip")}
    owner = slot.registry.origin(name)
    if as_json:
        about = {"kind": slot.registry.kind, "name": name, "owner": owner}
        print(json.dumps({**about, **counts, "rules": [outcome._asdict() for outcome in outcomes]}, indent=2))
    else:
        print(f'{slot.registry.kind} "{name}" of {owner}: ' + ", ".join(f"{counts[each]} {each}" for each in counts))
    if counts["fail"]:
        raise typer.Exit(1)


def _kind_of(name: str, kind: str | None) -> str:
    """Find the kind of a component by its name.

    Raises:
        UsageError: no such kind or name, or several kinds have it.
    """
    from retroflow.components import KINDS
    from retroflow.errors import UsageError

    kinds = [registry.kind for registry in KINDS]
    if kind is not None and kind not in kinds:
        raise UsageError(f'--kind is "{kind}"; allowed: {", ".join(kinds)}.')
    if kind is not None:
        return kind
    found = [registry.kind for registry in KINDS if name in registry.names()]
    if not found:
        raise UsageError(f'There is no component "{name}"; `retroflow components` lists all.')
    if len(found) > 1:
        raise UsageError(f'components of several kinds are called "{name}"; add --kind {" or --kind ".join(found)}.')
    return found[0]


def _list(as_json: bool) -> None:
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
