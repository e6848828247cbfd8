"""A process of its own for the rules of a contract suite: what hangs or dies there fails one rule, not pytest.

`RuleProcess` is the side that asks. `python -m retroflow.testing.rule_process FOLDER` is the side that answers: it
imports the suite by name, calls one function after the other with the suite's case, and replies in JSON, a line each.
"""

import faulthandler
import importlib
import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import unittest
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

HASH_SEEDS = ("1", "2")  # of the process that tests, where it is fixed, and of the other process
GRACE_SECONDS = 10.0  # from the child's own limit to the parent's
STDERR_CHARACTERS = 3_000


class RuleProcessError(Exception):
    """The process ended or hung while it was asked something; the message says how, and where it was."""

    def __init__(self, message: str, *, hung: bool) -> None:
        super().__init__(message)
        self.hung = hung


class RuleProcess:
    """Calls functions in another process, which is started by the first call and again after it died.

    Args:
        hash_seed: PYTHONHASHSEED of the process; None: as here.
        within: where its folder is made; None for the system's temporary folder.
    """

    def __init__(self, hash_seed: str | None = None, *, within: Path | None = None) -> None:
        self._hash_seed = hash_seed
        self._folder = tempfile.TemporaryDirectory(prefix="retroflow-contract-", dir=within, ignore_cleanup_errors=True)
        self._process: subprocess.Popen[str] | None = None

    def call(
        self,
        suite: type,
        function: Callable[..., object],
        arguments: Mapping[str, object] | None = None,
        *,
        seconds: float,
    ) -> Any:
        """Return what function(case of suite, **arguments) returns there; everything travels as JSON.

        Raises:
            AssertionError: it raised; the message holds its own words.
            RuleProcessError: the process died, or did not answer within so many seconds.
            unittest.SkipTest: it does not apply.
        """
        process = self._started()
        request = {
            "suite": _reference(suite),
            "function": f"{function.__module__}:{function.__qualname__}",
            "arguments": dict(arguments or {}),
            "seconds": seconds,
        }
        # The child ends itself at its limit and says where it was. Should it be stopped, or leave children that keep
        # its pipe open, this ends them all.
        hung = threading.Event()

        def end() -> None:
            hung.set()
            _kill(process)

        timer = threading.Timer(seconds + GRACE_SECONDS, end)
        timer.start()
        try:
            line = _ask(process, json.dumps(request))
        finally:
            timer.cancel()
        if not line:
            raise self._ended(seconds, hung=hung.is_set())
        reply = json.loads(line)
        if reply["outcome"] == "skipped":
            raise unittest.SkipTest(reply["value"])
        if reply["outcome"] == "failed":
            raise AssertionError(reply["value"])
        return reply["value"]

    def close(self) -> None:
        """End the process and all it started, and remove its files."""
        if self._process is not None:
            _kill(self._process)
            self._process = None
        self._folder.cleanup()

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        folder = Path(self._folder.name)
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        environment = {**os.environ, "PYTHONPATH": path}
        if self._hash_seed is not None:
            environment["PYTHONHASHSEED"] = self._hash_seed
        with (folder / "stderr").open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=folder,
                env=environment,
                text=True,
                start_new_session=True,
            )
        return self._process

    def _ended(self, seconds: float, *, hung: bool) -> RuleProcessError:
        process, self._process = cast("subprocess.Popen[str]", self._process), None
        _kill(process)
        said = (Path(self._folder.name) / "stderr").read_text(encoding="utf-8", errors="replace")
        hung = hung or "Timeout (" in said
        how = f"still running after {seconds:g} s" if hung else f"ended the process ({_status(process.returncode)})"
        said = said[said.rfind("Timeout (") :] if hung and "Timeout (" in said else said[-STDERR_CHARACTERS:]
        return RuleProcessError(how + (f". It wrote:\n{said[:STDERR_CHARACTERS]}" if said.strip() else ""), hung=hung)


def other_hash_seed() -> str:
    """Return a PYTHONHASHSEED that this process does not have."""
    return HASH_SEEDS[1] if os.environ.get("PYTHONHASHSEED") == HASH_SEEDS[0] else HASH_SEEDS[0]


def outcome_of(call: Callable[[], object]) -> tuple[str, Any]:
    """Call, and say what came of it: ("ok", value), ("skipped", reason) or ("failed", what was raised)."""
    try:
        return "ok", call()
    except unittest.SkipTest as skipped:
        return "skipped", str(skipped)
    except AssertionError as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return "failed", f"{_said(error)}\n({Path(frame.filename).name}:{frame.lineno} {frame.name})"
    except BaseException as error:  # SystemExit above all, which would end the process without a word
        if isinstance(error, KeyboardInterrupt):
            raise
        if type(error).__name__ == "Skipped":  # of pytest, which a suite may use and this does not need
            return "skipped", str(error)
        trace = "".join(traceback.format_exception(error))
        return "failed", f"{type(error).__name__}: {_said(error)}\n{trace}"


def _said(error: BaseException) -> str:
    """Return an error's message, and what it was at."""
    notes = getattr(error, "__notes__", [])
    return f"{error} ({'; '.join(notes)})" if notes else str(error)


def _ask(process: "subprocess.Popen[str]", request: str) -> str:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(request + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    except (BrokenPipeError, ValueError):
        return ""


def _kill(process: "subprocess.Popen[str]") -> None:
    """Kill the process and its children, which are in its group."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):  # it and its children are gone (macOS: they are zombies)
        pass
    process.wait()


def _status(returncode: int) -> str:
    if returncode >= 0:
        return f"exit status {returncode}"
    return f"signal {-returncode}, {signal.Signals(-returncode).name}"


def _reference(suite: Any) -> dict[str, Any]:
    if "registered" in vars(suite):
        return {"registered": suite.registered}
    return {"module": suite.__module__, "file": os.path.abspath(inspect.getfile(suite)), "name": suite.__qualname__}


def _suite(reference: dict[str, Any]) -> Any:
    """Import the test class as pytest did: by name where that leads to the same file, else by file."""
    if "registered" in reference:
        from retroflow.testing.registered import suite_of

        return suite_of(*reference["registered"])
    name, file = reference["module"], Path(reference["file"])
    try:
        module = sys.modules.get(name) or importlib.import_module(name)
        found = Path(module.__file__ or "").resolve() == file.resolve()
    except ImportError:
        found = False
    if not found:
        specification = importlib.util.spec_from_file_location(name, file)
        if specification is None or specification.loader is None:
            raise ImportError(f"cannot import {file}")
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
    found_class: Any = module
    for part in reference["name"].split("."):
        if part == "<locals>":
            raise ImportError(f"{reference['name']} is defined inside a function; define the suite in its module")
        found_class = getattr(found_class, part)
    return found_class


def _answer(request: dict[str, Any], cases: dict[str, Any], folder: Path) -> tuple[str, Any]:
    def call() -> object:
        reference = request["suite"]
        key = json.dumps(reference)
        if key not in cases:
            cases.clear()
            cases[key] = _suite(reference).make_case(Path(tempfile.mkdtemp(dir=folder)))
        module, _, name = request["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
        return function(cases[key], **request["arguments"])

    return outcome_of(call)


def _serve(requests: IO[str], replies: IO[str], folder: Path) -> None:
    cases: dict[str, Any] = {}
    for line in requests:
        request = json.loads(line)
        faulthandler.dump_traceback_later(request["seconds"], exit=True)
        outcome, value = _answer(request, cases, folder)
        faulthandler.cancel_dump_traceback_later()
        replies.write(json.dumps({"outcome": outcome, "value": value}) + "\n")
        replies.flush()


def main() -> None:
    """Answer requests until there are no more; what a library prints goes to stderr, away from the replies."""
    faulthandler.enable()
    requests, replies = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    _serve(requests, replies, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
