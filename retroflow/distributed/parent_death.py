"""End with the parent: a process that outlives whoever started it trains on unseen, or holds the run's lock."""

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 1.0


def end_with_parent(parent: int) -> None:
    """Have this process killed when its parent is gone, even if the parent was killed itself.

    Linux does it at once; a thread that looks every second does it elsewhere, and where the kernel refuses.

    Args:
        parent: process id of whoever started this process; if it is gone already, this process ends now.
    """
    if not kill_with_parent(parent):
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def kill_with_parent(parent: int) -> bool:
    """Ask the kernel alone, which is all that a forked process may do; returns whether it will."""
    asked = False
    if sys.platform == "linux":
        asked = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    if os.getppid() != parent:
        os._exit(1)
    return asked


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)
