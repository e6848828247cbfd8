"""Waiting for what another thread or process does, on a machine that may be busy."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], seconds: float = 200.0) -> T:
    """Return what a condition returns as soon as that is true; fail after a time that is far longer than it takes."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"still waiting after {seconds:g} s"
        time.sleep(0.01)
    return found
