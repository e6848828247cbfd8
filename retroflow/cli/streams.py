"""The standard streams: made safe before a command runs, and stdout reserved for results."""

import ctypes
import faulthandler
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from typing import TextIO

from retroflow.console import DESCRIPTOR_OF_RESULTS
from retroflow.errors import RetroflowError

STDOUT = "stdout"

_stdout_of_results: ContextVar[TextIO | None] = ContextVar("stdout_of_results", default=None)


class _NamedStdout(io.TextIOWrapper):
    """Stdout whose errors name stdout; those of a plain stream do not."""

    def write(self, text: str, /) -> int:
        with _naming_stdout():
            return super().write(text)

    def flush(self) -> None:
        with _naming_stdout():
            super().flush()


@contextmanager
def _naming_stdout() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, STDOUT) from error


def ready_streams() -> None:
    """Make the streams of this process safe to write to, and let crashes of native code name their Python lines.

    A closed descriptor is opened at once. Otherwise the next opened file would get its number, and output would be
    written into that file. Output for a closed stdout goes to stderr, so that it is not lost.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    if sys.stdout is None:
        os.dup2(2, 1)  # for the processes that this one starts
        sys.stdout = sys.stderr
    elif isinstance(sys.stdout, io.TextIOWrapper):
        before = sys.stdout
        sys.stdout = _NamedStdout(
            before.buffer,
            encoding=before.encoding,
            errors=before.errors,
            line_buffering=before.line_buffering,
            write_through=before.write_through,
        )
    with suppress(OSError, ValueError, RuntimeError):
        faulthandler.enable()


@contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Redirect the output of plugins and libraries to stderr; `print_result` still reaches stdout.

    Descriptor 1 is redirected, too, because native code writes to it directly.
    """
    with _descriptor_1_at_stderr(result_stream()) as results:
        token = _stdout_of_results.set(results)
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            _stdout_of_results.reset(token)


@contextmanager
def _descriptor_1_at_stderr(stdout: TextIO) -> Iterator[TextIO]:
    """Point descriptor 1 at stderr and yield a stream to stdout; stdout itself if it has another descriptor."""
    try:
        is_descriptor_1 = stdout.fileno() == 1 and isinstance(stdout, io.TextIOWrapper)
    except (OSError, ValueError, AttributeError):
        is_descriptor_1 = False
    if not is_descriptor_1:
        yield stdout
        return
    stdout.flush()
    kept = os.dup(1)
    results = _NamedStdout(os.fdopen(kept, "wb"), stdout.encoding, stdout.errors, line_buffering=True)
    os.dup2(2, 1)
    token = DESCRIPTOR_OF_RESULTS.set(kept)
    try:
        yield results
    finally:
        DESCRIPTOR_OF_RESULTS.reset(token)
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # or native code's buffered output would appear on stdout later
        os.dup2(kept, 1)
        try:
            results.flush()
        finally:
            with open(os.devnull, "wb") as nothing:  # what could not be written must not be written again
                os.dup2(nothing.fileno(), kept)
            results.close()


def result_stream() -> TextIO:
    """Return stdout, also while `only_results_on_stdout` has redirected it."""
    return _stdout_of_results.get() or sys.stdout


@contextmanager
def writing_results() -> Iterator[None]:
    """Name stdout in the errors of writing to it.

    Raises:
        BrokenPipeError: the reader has closed it.
        RetroflowError: writing failed, for example because the disk is full.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RetroflowError(describe_failed_stdout(error)) from error


def print_result(text: str) -> None:
    """Print a command's result; raises the errors of `writing_results`."""
    with writing_results():
        print(text, file=result_stream(), flush=True)


def describe_failed_stdout(error: OSError) -> str:
    """Return the message for a result that could not be written."""
    return f"stdout: {error.strerror}. The result could not be printed; redirect stdout. Finished work is kept."


def drop_unprinted() -> None:
    """Point stdout at the null device if it cannot be flushed, so that the interpreter's last flush does not fail."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError), open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
