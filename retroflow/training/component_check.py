"""Load every component, each where it can do no harm: in a child process that may crash, hang or exit.

The child tells over a pipe of its own which component it begins with and how that ended, so that the one it died of
is known; another child goes on with the rest.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from retroflow.components import KINDS
from retroflow.errors import MissingExtraError, RetroflowError

CHILD_SECONDS = 120.0
"""How long one child may take; importing torch, transformers and faiss takes some ten seconds on a busy machine."""

_PROGRAM = (
    "import sys; from retroflow.training.component_check import load_all; load_all(int(sys.argv[1]), sys.argv[2:])"
)


@dataclass(frozen=True)
class Loaded:
    """How loading a component went.

    Attributes:
        kind: of registry, "retriever".
        name: the component's.
        owner: distribution and version, all of them if several claim the name.
        error: why it cannot be used, None if it can.
        is_optional: whether it only lacks a library that an extra of retroflow installs.
    """

    kind: str
    name: str
    owner: str
    error: str | None = None
    is_optional: bool = False


def check_components(*, seconds: float = CHILD_SECONDS) -> Iterator[Loaded]:
    """Load every component of every registry in child processes."""
    owners = {
        f"{registry.kind}/{name}": " and ".join(claim.owner for claim in registry.claims(name))
        for registry in KINDS
        for name in registry.names()
    }
    waiting = list(owners)
    while waiting:
        told, ending = _ask_child(waiting, seconds)
        for line in told:
            key = line["component"]
            waiting.remove(key)
            kind, _, name = key.partition("/")
            yield Loaded(kind, name, owners[key], line["error"], line["is_optional"])
        if ending is not None:
            kind, _, name = waiting[0].partition("/")
            owner = owners[waiting.pop(0)]
            distribution = owner.partition(" ")[0]
            yield Loaded(kind, name, owner, f"{owner} {ending} while it was loaded; uninstall or mend {distribution}")


def _ask_child(keys: list[str], seconds: float) -> tuple[list[dict[str, Any]], str | None]:
    """Let a child load components; returns what it told, and how it ended before it was through."""
    reading, writing = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(writing), *keys],
        pass_fds=(writing,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(writing)
    ending = None
    try:
        code = child.wait(seconds)
        if code:
            ending = f"ended the process (signal {-code})" if code < 0 else f"ended the process (exit code {code})"
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        ending = f"did not end within {seconds:g} s"
    with os.fdopen(reading, encoding="utf-8") as pipe:  # what is told fits a pipe's buffer
        told = [json.loads(line) for line in pipe]
    if ending is None and len(told) < len(keys):
        ending = "ended the process"
    return told, ending if len(told) < len(keys) else None


def load_all(descriptor: int, keys: list[str]) -> None:
    """Load components in the child; tell of each on the descriptor."""
    with os.fdopen(descriptor, "w", encoding="utf-8") as pipe:
        for key in keys:
            _load(key, pipe)


def _load(key: str, pipe: IO[str]) -> None:
    kind, _, name = key.partition("/")
    registry = next(registry for registry in KINDS if registry.kind == kind)
    error, is_optional = None, False
    try:
        registry.get(name)
    except MissingExtraError as missing:
        error, is_optional = str(missing), False
        with suppress(RetroflowError):
            is_optional = registry.entry(name).extra is not None
    except RetroflowError as broken:
        error = str(broken)
    pipe.write(json.dumps({"component": key, "error": error, "is_optional": is_optional}) + "\n")
    pipe.flush()
