"""Options that must not be too small, refused by their recipe key before a library takes them its own way."""

from collections.abc import Mapping

from retroflow.errors import RecipeError


def check_least(block: str, options: object, least: Mapping[str, int]) -> None:
    """Refuse options below what a retriever can work with.

    Args:
        block: "build" or "search".
        options: the block's dataclass.
        least: name of each option to its smallest value.

    Raises:
        RecipeError: one is smaller.
    """
    for name, smallest in least.items():
        given = getattr(options, name)
        if given < smallest:
            raise RecipeError(f"retriever.{block}.{name} is {given}; it must be {smallest} or more.")
