"""Error messages are sentences, and the library's speak of arguments; options are for the command line."""

import ast
import re
from collections.abc import Iterator

from retroflow import errors
from tests.house.tree import library, parse, relative

KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type)} | {"ArgumentError"}
SPEAK_OPTIONS = {
    "retroflow/clusters/options.py",
    "retroflow/clusters/preparing.py",
    "retroflow/clusters/ray.py",
    "retroflow/clusters/slurm.py",
    "retroflow/generation/prompts.py",
    "retroflow/pipeline/sharing.py",
    "retroflow/pipeline/stages.py",
    "retroflow/serving/options.py",
    "retroflow/serving/server.py",
}
"""They read words of the command line."""


def messages() -> Iterator[tuple[str, str]]:
    """Place and text of every message that is written where it is raised; {} for what is filled in."""
    for path in library():
        for node in ast.walk(parse(path)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS):
                continue
            message = node.args[0] if node.args else None
            parts = message.values if isinstance(message, ast.JoinedStr) else [message]
            texts = [part.value if isinstance(part, ast.Constant) else "{}" for part in parts if part is not None]
            if all(isinstance(text, str) for text in texts):
                yield f"{relative(path)}:{node.lineno}", "".join(texts)


def test_messages_end_with_a_period_or_with_a_command_to_type() -> None:
    found = list(messages())
    assert len(found) > 200
    complete = re.compile(r"([.?]|pip install .*|\{\})$", re.DOTALL)
    assert not [(place, text) for place, text in found if text and not complete.search(text.rstrip())]


def test_messages_of_the_library_name_arguments_and_not_options() -> None:
    assert not [
        (place, text)
        for place, text in messages()
        if re.search(r"(?<![\w-])--[a-z]", re.sub(r"(pip install|retroflow \w+) --[\w-]+", "", text))
        and not place.startswith("retroflow/cli/")
        and place.partition(":")[0] not in SPEAK_OPTIONS
    ]
