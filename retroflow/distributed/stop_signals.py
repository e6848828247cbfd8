"""SIGTERM, SIGINT and SIGHUP become a request that the training loop reads at the next step boundary."""

import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from retroflow.errors import Interrupted, Preempted

SIGNALS = tuple(number for name in ("SIGTERM", "SIGINT", "SIGHUP") if (number := getattr(signal, name, None)))
"""Signals of a scheduler, of the keyboard and of a closed terminal."""


@contextmanager
def preempted_while_starting() -> Iterator[None]:
    """End at once at SIGTERM, with the exit code that asks a scheduler to run the job again.

    For the time in which libraries are imported (seconds, on a network file system minutes) and nothing has begun. No
    exception is raised, because imports of native libraries do not survive one.
    """

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, b"error: stopped before anything was begun; the same command begins it\n")
        os._exit(Preempted.exit_code)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


_HANGUP = getattr(signal, "SIGHUP", None)


def _leave_terminal() -> None:
    """Discard what is printed to a terminal from now on: writing to a closed one is an error."""
    with open(os.devnull, "w") as nothing:
        for descriptor in (1, 2):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nothing.fileno(), descriptor)


class StopRequests:
    """Records the first stop signal; a second SIGINT, and any signal within `at_once`, interrupts.

    Lightning's own SIGTERM handler writes no checkpoint and hangs several processes, so `install` is called again
    after Lightning has installed its handlers.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._before: dict[int, Any] = {}
        self._waits = True

    @property
    def is_requested(self) -> bool:
        return self.signal_number is not None

    def install(self) -> None:
        """Install the handlers; does nothing outside the main thread, where Python allows none."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number == _HANGUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # under nohup a run continues without its terminal
                signal.signal(number, self._record)

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == _HANGUP:
            _leave_terminal()
        again = self.signal_number is not None and number == signal.SIGINT
        self.signal_number = self.signal_number or number
        if again or not self._waits:
            raise KeyboardInterrupt

    def adopt(self, number: int) -> None:
        """Record the signal that another rank was sent, so that all end alike."""
        self.signal_number = self.signal_number or number

    @contextmanager
    def at_once(self, where: str) -> Iterator[None]:
        """Stop at a signal without waiting for the end of a step, in work that may be killed anywhere.

        Args:
            where: as in `stop_if_requested`, with its errors.
        """
        self._waits = False
        try:
            yield
        except KeyboardInterrupt:
            self.stop_if_requested(where)
            raise
        finally:
            self._waits = True

    def stop_if_requested(self, where: str) -> None:
        """Raise if a signal has come.

        Args:
            where: the error's message: what is saved and how to continue.

        Raises:
            Preempted: SIGTERM came; exit code 75.
            Interrupted: SIGINT came; exit code 130.
        """
        if self.signal_number == signal.SIGINT:
            raise Interrupted(where)
        if self.signal_number is not None:
            raise Preempted(where)
