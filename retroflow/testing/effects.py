"""What a component does to the process it runs in, and where it writes: found by looking before and after.

Printing, global random generators, the current folder, the environment; files written elsewhere, pickles loaded.
"""

import ctypes
import gc
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATH_ARGUMENT = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.symlink": 1, "os.link": 1}  # of the file made

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ENVIRONMENT = dict(os.environ)  # before a component has been made

_watching: dict[int, Callable[[str, tuple[Any, ...]], None]] = {}  # by thread; an audit hook cannot be taken away
_installed = threading.Event()


def state_of_process() -> dict[str, object]:
    """Return what a library must leave as it was, by its name in a sentence."""
    numpy_state = np.random.get_state(legacy=False)["state"]
    state: dict[str, object] = {
        "the state of Python's random": hash(random.getstate()),
        "the state of numpy.random": (numpy_state["key"].tobytes(), numpy_state["pos"]),
        "the current folder": os.getcwd(),
        "numpy.seterr": np.geterr(),
        "what a signal does": [signal.getsignal(number) for number in _SIGNALS],
        "os.environ": dict(os.environ),
        "the umask": _umask(),
        "sys.path": list(sys.path),
        "sys.stdout": sys.stdout,
        "the recursion limit": sys.getrecursionlimit(),
        "whether garbage is collected": gc.isenabled(),
        "warnings.filters": list(warnings.filters),
        "the root logger's level": logging.getLogger().level,
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        state["the state of torch's generator"] = torch.get_rng_state().numpy().tobytes()
        state["torch's number of threads"] = torch.get_num_threads()
        state["torch's default dtype"] = torch.get_default_dtype()
        state["whether torch keeps gradients"] = torch.is_grad_enabled()
    return state


@contextmanager
def unusual_settings(folder: Path) -> Iterator[None]:
    """Give settings values that no library asks for, and put them back afterwards.

    What is set at every call, and was set by an earlier one, would otherwise look as if nothing had changed.

    Args:
        folder: becomes the current folder.
    """
    torch = sys.modules.get("torch")
    logger = logging.getLogger()
    environment, mask, limit, collected, level = (
        dict(os.environ),
        _umask(),
        sys.getrecursionlimit(),
        gc.isenabled(),
        logger.level,
    )
    of_torch = (torch.get_num_threads(), torch.is_grad_enabled()) if torch else None
    in_main_thread = threading.current_thread() is threading.main_thread()
    handlers = [signal.getsignal(number) for number in _SIGNALS]
    with (
        chdir(folder),
        np.errstate(divide="ignore", over="warn", under="ignore", invalid="warn"),
        warnings.catch_warnings(),
    ):
        warnings.resetwarnings()
        _set_environment(_ENVIRONMENT)
        os.umask(0o026)
        sys.setrecursionlimit(limit + 1)
        gc.enable()
        logger.setLevel(logging.WARNING + 3)
        if torch:
            torch.set_num_threads(3)
            torch.set_grad_enabled(True)
        for number in _SIGNALS if in_main_thread else ():
            signal.signal(number, lambda *_: None)
        try:
            yield
        finally:
            _set_environment(environment)
            os.umask(mask)
            sys.setrecursionlimit(limit)
            (gc.enable if collected else gc.disable)()
            logger.setLevel(level)
            if torch and of_torch:
                torch.set_num_threads(of_torch[0])
                torch.set_grad_enabled(of_torch[1])
            for number, handler in zip(_SIGNALS, handlers, strict=True) if in_main_thread else ():
                signal.signal(number, handler)


def draw_from_global_generators() -> None:
    """Move their states on, so that seeding them again, even with the same number, is seen."""
    random.random()
    np.random.random_sample()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.rand(1)


def changed_since(before: dict[str, object]) -> list[str]:
    """Name what differs from an earlier `state_of_process`."""
    after = state_of_process()
    return [name for name, value in before.items() if after[name] != value]


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _set_environment(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


@contextmanager
def standard_output() -> Iterator[Callable[[], str]]:
    """Catch what is written to stdout, by Python or by native code; the function yielded returns it so far."""
    sys.stdout.flush()
    before, descriptor = sys.stdout, os.dup(1)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as caught:
        os.dup2(caught.fileno(), 1)
        with os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace") as stream:
            sys.stdout = stream

            def written() -> str:
                stream.flush()
                if os.name == "posix":
                    ctypes.CDLL(None).fflush(None)  # what native code printed may still be in its buffer
                caught.seek(0)
                return caught.read()

            try:
                yield written
            finally:
                sys.stdout = before
                os.dup2(descriptor, 1)
                os.close(descriptor)


@contextmanager
def writes_outside(folder: Path) -> Iterator[list[str]]:
    """List the paths outside folder that Python code of this thread creates or opens for writing."""
    found: list[str] = []
    inside = os.path.realpath(folder)

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _PATH_ARGUMENT or (event == "open" and not _opens_for_writing(arguments)):
            return
        path = arguments[_PATH_ARGUMENT[event]]
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor
        absolute = os.path.realpath(os.fsdecode(path))
        if (
            absolute != os.devnull
            and "__pycache__" not in absolute
            and not (absolute + os.sep).startswith(inside + os.sep)
        ):
            found.append(absolute)

    with _watched(look):
        yield found


@contextmanager
def unpickled() -> Iterator[list[str]]:
    """List the classes and functions that this thread's unpickling looks up."""
    found: list[str] = []

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            found.append(".".join(map(str, arguments)))

    with _watched(look):
        yield found


def _opens_for_writing(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & _WRITES)


@contextmanager
def _watched(look: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
    if not _installed.is_set():
        _installed.set()
        sys.addaudithook(_hook)
    thread = threading.get_ident()
    _watching[thread] = look
    try:
        yield
    finally:
        del _watching[thread]


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    look = _watching.get(threading.get_ident()) if _watching else None
    if look is not None:
        look(event, arguments)
