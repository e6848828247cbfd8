"""Options as a recipe sees them, which reads them from source, against those that the class has."""

import inspect

from retroflow.errors import BrokenPluginError
from retroflow.options.annotations import parameters
from retroflow.options.types import Block, block_of
from retroflow.recipe.signatures import read_block


def check_keyword_only(component: type) -> None:
    """Assert that __init__ takes named options by keyword only."""
    parameters = inspect.signature(component).parameters.values()
    wrong = [each.name for each in parameters if each.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert not wrong, f"__init__ must take options by keyword only, as recipes give them (put a * before {wrong})"


def check_readable(component: type) -> None:
    """Assert that a recipe can set every parameter of __init__, those of dataclasses among them included.

    A parameter whose name begins with an underscore is no option: a client that a test injects.
    """
    try:
        block = read_block(f"{component.__module__}:{component.__qualname__}", "the component under test")
    except BrokenPluginError as error:
        raise AssertionError(str(error)) from None
    unread = _unread(parameters(component), block, "")
    assert not unread, (
        f"recipes cannot set {', '.join(unread)}: an option needs an annotation (int, float, str, bool, Literal, a "
        "list or a dataclass of these) and a constant as default; what is no option has a name that begins with _"
    )


def _unread(known: Block, block: Block, prefix: str) -> list[str]:
    """Name the parameters of a class that its block lacks, those of dataclasses among them included."""
    unread: list[str] = []
    for name, option in known.options.items():
        nested, read = block_of(option.type), block.options.get(name)
        inner = block_of(read.type) if read is not None else None
        if not name.startswith("_") and (read is None or (nested is not None and inner is None)):
            unread.append(prefix + name)
        elif nested is not None and inner is not None:
            unread += _unread(nested, inner, f"{prefix}{name}.")
    return unread
