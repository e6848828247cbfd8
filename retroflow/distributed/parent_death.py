"""End with the parent: a process that outlives its parent would train on unseen, or keep the run's lock."""

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 1.0


def end_with_parent(parent: int) -> None:
    """Have this process killed when its parent ends, even if the parent is killed.

    Linux does it at once; elsewhere, and where the kernel refuses, a thread checks every second.

    Args:
        parent: process id of the parent; if it has ended already, this process ends now.
    """
    if not kill_with_parent(parent):
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def kill_with_parent(parent: int) -> bool:
    """Ask the kernel only, because a forked process must start no thread; returns whether it will."""
    accepted = False
    if sys.platform == "linux":
        accepted = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    if os.getppid() != parent:
        os._exit(1)
    return accepted


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)
