"""Words of the command line, `a.b=value`, as a tree that overrides a recipe."""

from collections.abc import Sequence

from retroflow.errors import RecipeError
from retroflow.options.types import BROKEN
from retroflow.recipe.problems import COMMAND_LINE, Problems
from retroflow.recipe.tree import Node, overlay
from retroflow.recipe.yaml_text import parse_scalar, read

STARTS_YAML = ("{", "[", '"', "'")


def parse_overrides(words: Sequence[str], problems: Problems) -> Node:
    """Return all overrides as one tree, a later one over an earlier one.

    A value that starts with a bracket, brace or quote is YAML; any other is one plain scalar, so that `path=*.txt`
    and `include=a: b` need no second layer of quotes.
    """
    tree = Node({}, COMMAND_LINE)
    explained: tuple[str, ...] = ()
    for position, (word, following) in enumerate(zip(words, [*words, ""][1:], strict=True)):
        key, equals, text = word.partition("=")
        if not equals or not key or key.startswith("-"):
            if word not in explained:
                problems.add(COMMAND_LINE, "", _misspelt(word, following))
                explained = _taken_along(words[position:])
            continue
        parts = key.split(".")
        if not all(part.isidentifier() for part in parts):
            problems.add(COMMAND_LINE, "", _not_a_key(key, text))
            continue
        if key == "extends":
            problems.add(COMMAND_LINE, key, "belongs in the recipe file; here, write out the values to change.")
            continue
        node = _value(key, text, problems)
        for part in reversed(parts):
            node = Node({part: node}, COMMAND_LINE)
        tree = overlay(tree, node)
    return tree


def _value(key: str, text: str, problems: Problems) -> Node:
    if not text.startswith(STARTS_YAML):
        return Node(parse_scalar(text), COMMAND_LINE)
    try:
        return read(text, "", problems, origin=COMMAND_LINE)
    except RecipeError as error:
        reason = str(error).partition(": ")[2]
        problems.add(COMMAND_LINE, key, f"is {text}: {reason} In a shell, quote the whole word: '{key}={{a: 1}}'.")
        return Node(BROKEN, COMMAND_LINE)


def _not_a_key(key: str, value: str) -> str:
    meant = ".".join(part.strip().replace("-", "_") for part in key.split("."))
    if all(part.isidentifier() for part in meant.split(".")):
        return f'"{key}" is not a key. Did you mean "{meant}"? Write {meant}={value.strip()}'
    return f'"{key}" is not a key; write words joined by dots, such as trainer.max_steps.'


def _misspelt(word: str, following: str) -> str:
    key, _, value = word.lstrip("-").partition("=")
    if word.startswith("-"):
        if "." in key:
            value = value or (following if following and "=" not in following else "VALUE")
            return f'"{word}" is not an option; values of a recipe are set without dashes: {key}={value}.'
        return f'there is no option "{word.partition("=")[0]}"; --help lists the options.'
    if following.startswith("="):
        return f'"{word} {following}" is more than one word; write {word}=VALUE without spaces.'
    return f'"{word}" is not an override; write KEY=VALUE, such as trainer.max_steps=100.'


def _taken_along(words: Sequence[str]) -> tuple[str, ...]:
    """Return the words that belong to the first one: the 5 of `--trainer.max_steps 5`."""
    if words[0].startswith("-"):
        return tuple(words[1:2]) if "." in words[0] else ()
    if tuple(words[1:2]) == ("=",):
        return tuple(words[1:3])
    return tuple(words[1:2]) if words[1:2] and words[1].startswith("=") else ()
