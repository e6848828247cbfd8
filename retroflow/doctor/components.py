"""Load every component in a child process, where a crash, a hang or an exit does no harm.

Two children work at a time, one from the top of the list and one from its end. Each loads one component after
another, so it is known which one a child dies of or hangs at. Another child then takes the next.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from retroflow.components import KINDS, find_fault
from retroflow.distributions import shield_libraries
from retroflow.errors import RetroflowError
from retroflow.registry import Registry, missing_modules

COMPONENT_SECONDS = 60.0
"""Time limit for loading one; importing torch and transformers takes about ten seconds on a busy machine."""

_POLL_SECONDS = 0.2
_ENDING_SECONDS = 5.0

_PROGRAM = """
import sys
from retroflow.distributed.parent_death import end_with_parent
end_with_parent(int(sys.argv[1]))
from retroflow.doctor.components import serve
serve(int(sys.argv[2]))
"""


@dataclass(frozen=True)
class Loaded:
    """The result of loading a component.

    Attributes:
        kind: of the registry, such as "retriever".
        name: of the component.
        owner: distribution and version, all of them if several claim the name.
        error: why it cannot be used, None if it can.
        is_optional: whether retroflow works without it: it is a plugin, or lacks a library of an extra.
    """

    kind: str
    name: str
    owner: str
    error: str | None = None
    is_optional: bool = False


class ComponentCheck:
    """Context that loads every component of every registry in the background; its end kills what still runs.

    Args:
        seconds: how long one component may take.
    """

    def __init__(self, *, seconds: float = COMPONENT_SECONDS) -> None:
        self._seconds = seconds
        self._keys = [(registry, name) for registry in KINDS for name in registry.names()]
        self._waiting = deque(self._keys)
        self._found: dict[tuple[str, str], Loaded] = {}
        self._more = threading.Condition()
        self._children: set[_Child] = set()
        self._stopped = False
        takes = (self._waiting.popleft, self._waiting.pop)
        self._threads = [threading.Thread(target=self._work, args=(take,), daemon=True) for take in takes]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._more:
            self._stopped = True
            for child in self._children:
                child.kill()
        for thread in self._threads:
            thread.join()

    def results(self) -> Iterator[Loaded]:
        """Yield the result of each component, in the order of the registries; waits for it."""
        for registry, name in self._keys:
            with self._more:
                while (registry.kind, name) not in self._found:
                    self._more.wait()
            yield self._found[registry.kind, name]

    def _work(self, take: Callable[[], tuple[Registry[Any], str]]) -> None:
        child: _Child | None = None
        while True:
            with self._more:
                if self._stopped or not self._waiting:
                    break
                registry, name = take()
            try:
                child = child or self._new_child()
                answer = child.load(registry.kind, name, self._seconds)
                if isinstance(answer, dict) and answer["error"] and child.has_loaded_plugins:
                    self._end(child)  # another plugin may have broken the process
                    child = self._new_child()
                    answer = child.load(registry.kind, name, self._seconds)
                child.has_loaded_plugins |= registry.claims(name)[0].is_plugin
            except OSError as error:
                answer = f"could not be sent to another process ({error})"
            if isinstance(answer, str) and child is not None:
                self._end(child)
                child = None
            with self._more:
                self._found[registry.kind, name] = _judged(registry, name, answer)
                self._more.notify_all()
        if child is not None:
            self._end(child)

    def _new_child(self) -> "_Child":
        with self._more:
            if self._stopped:
                raise ProcessLookupError("the check was stopped")
            child = _Child()
            self._children.add(child)
            return child

    def _end(self, child: "_Child") -> None:
        with self._more:
            self._children.discard(child)
        child.end()


def _judged(registry: Registry[Any], name: str, answer: "dict[str, Any] | str") -> Loaded:
    """Return the result for a component, from a child's answer or from how the child ended."""
    claims = registry.claims(name)
    owner = " and ".join(claim.owner for claim in claims)
    is_plugin = claims[0].is_plugin
    if isinstance(answer, dict):
        return Loaded(registry.kind, name, owner, answer["error"], is_plugin or answer["is_optional"])
    remedy = (
        f"Ask its authors; if you do not need it: pip uninstall {claims[0].distribution}"
        if is_plugin
        else "Its library may be damaged, or built for another machine."
    )
    error = f'{registry.kind} "{name}" of {owner} {answer} while it was loaded. {remedy}'
    return Loaded(registry.kind, name, owner, error, is_plugin)


class _Child:
    """A process that loads components. It ends with this one, and is killed with all its children.

    Attributes:
        has_loaded_plugins: whether code of plugins has run in it, which may have changed its state.
    """

    def __init__(self) -> None:
        self.has_loaded_plugins = False
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(os.getpid()), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def load(self, kind: str, name: str, seconds: float) -> dict[str, Any] | str:
        """Load a component in the child; return its answer, or how the child ended."""
        with suppress(OSError):  # an ended child is noticed below
            self._socket.sendall(json.dumps([kind, name]).encode() + b"\n")
        received, deadline = b"", time.monotonic() + seconds
        while not received.endswith(b"\n"):
            readable, _, _ = select.select([self._socket], [], [], _POLL_SECONDS)
            part = b""
            with suppress(OSError):
                part = self._socket.recv(1 << 16) if readable else b""
            received += part
            if not part and (readable or self._process.poll() is not None):
                return self._ending()
            if not part and time.monotonic() > deadline:
                return f"did not end within {seconds:g} s"
        answer: dict[str, Any] = json.loads(received)
        return answer

    def kill(self) -> None:
        """Kill it and its children."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it, and wait until it has ended."""
        self.kill()
        self._process.wait()
        self._socket.close()

    def _ending(self) -> str:
        try:
            code = self._process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            return "stopped answering"
        return f"ended the process (signal {-code})" if code < 0 else f"ended the process (exit code {code})"


def serve(descriptor: int) -> None:
    """Load the components that a socket names, in the child; answer each."""
    os.set_inheritable(descriptor, False)
    shield_libraries()
    with socket.socket(fileno=descriptor) as connection, connection.makefile("r", encoding="utf-8") as requests:
        for line in requests:
            kind, name = json.loads(line)
            connection.sendall(json.dumps(_load(kind, name)).encode() + b"\n")


def _load(kind: str, name: str) -> dict[str, Any]:
    registry = next(registry for registry in KINDS if registry.kind == kind)
    try:
        error = find_fault(registry, name)
        if error is None:
            registry.get(name)
    except RetroflowError as broken:
        error = str(broken)
    except BaseException as broken:  # also a KeyboardInterrupt that a plugin raises
        error = f'{kind} "{name}" of {registry.origin(name)} raised {type(broken).__name__} while it was loaded'
    claims = registry.claims(name)
    is_optional = error is not None and claims[0].extra is not None and bool(missing_modules(claims[0]))
    return {"error": error, "is_optional": is_optional}
