"""Flags that commands share, and flags made of the fields of a dataclass."""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from retroflow.options.types import Option

Folder = Annotated[Path, typer.Argument(help="Run folder, or one that `retroflow export` wrote.", show_default=False)]
Served = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Run folder, exported folder, or with a database a pretrained base.", show_default=False
    ),
]
Checkpoint = Annotated[
    str | None,
    typer.Option("--checkpoint", metavar="STEP|PATH", help="Of a run: a step or a file. Default: the newest."),
]
Database = Annotated[
    Path | None,
    typer.Option("--database", help="Database, DB@VERSION, index, artifacts or run. Default: the run's own."),
]
Retrieval = Annotated[bool, typer.Option(" /--no-retrieval", help="Read no neighbours.", show_default=False)]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]


def with_flags(
    options: str, *, names: Mapping[str, str] = MappingProxyType({}), shown: Mapping[str, str] = MappingProxyType({})
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for each field of a dataclass, as its source describes it (nothing is imported).

    Args:
        options: "module:class"; the command has the parameter `options`, a mapping.
        names: flags that are not called as their fields.
        shown: defaults that are shown for flags which are not passed on unless they are given.
    """

    def add(command: Callable[..., None]) -> Callable[..., None]:
        return _with_flags(command, options, names, shown)

    return add


def _with_flags(
    command: Callable[..., None], options: str, names: Mapping[str, str], shown: Mapping[str, str]
) -> Callable[..., None]:
    from retroflow.recipe.signatures import read_block

    fields = read_block(options, "retroflow").options
    signature = inspect.signature(command)

    @functools.wraps(command)
    def _run(**words: Any) -> None:
        given = {name: words.pop(name) for name in fields}
        command(**words, options={name: value for name, value in given.items() if value is not None})

    own = list(signature.parameters.values())
    place = next(number for number, parameter in enumerate(own) if parameter.name == "options")
    flags = [_flag(name, field, names.get(name), shown.get(name)) for name, field in fields.items()]
    _run.__signature__ = signature.replace(parameters=[*own[:place], *flags, *own[place + 1 :]])  # type: ignore[attr-defined]
    return _run


def _flag(name: str, field: "Option", flag: str | None, shown: str | None) -> inspect.Parameter:
    from retroflow.options.types import Choice, Listed, Scalar, arms_of

    kinds = {"int": int, "float": float, "str": str, "bool": bool}
    scalar = next(arm for arm in arms_of(field.type) if isinstance(arm, Choice | Listed | Scalar))
    several = isinstance(scalar, Listed)
    item = scalar.item if isinstance(scalar, Listed) else scalar
    kind: Any = kinds[item.kind] if isinstance(item, Scalar) else str
    words = f"{field.description[:1].upper()}{field.description[1:]}"
    default = field.default if shown is None else None
    dashed = name.replace("_", "-")
    option = typer.Option(
        flag or (f"--{dashed}/--no-{dashed}" if kind is bool else f"--{dashed}"),
        help=f"{words} May be given several times." if several else words,
        show_default=shown is None or shown,
    )
    annotation = list[kind] | None if several else kind | None if default is None else kind
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option]
    )
