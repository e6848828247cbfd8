"""Put on the path of a run's processes: does something at the moment a named file is given its name.

FAULT holds "rank file action": when that rank ("-" for a process without one) is about to rename something to `file`,
it does the action first, or with a fifth word, "after", then. Actions are "kill N" and "suspend N" (SIGKILL and SIGSTOP
to rank N, which may be itself), "worker" (SIGKILL to a data worker of this process), "SIGTERM", "SIGINT", "SIGKILL",
"SIGHUP" to the launcher, and "full": the disk has no place for the file.
"""

import errno
import os
import signal
import time

_UNTIL_ENDED = 60.0  # seconds; a rank that goes on writing would make it chance how far it comes


def _process_of(rank):
    """The rank of the same test whose environment says so."""
    mark = b"TEST_MARK=" + os.environ["TEST_MARK"].encode()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                variables = file.read().split(b"\0")
            with open(f"/proc/{name}/cmdline", "rb") as file:
                is_rank = b"rank_process" in file.read()
        except OSError:
            continue
        # Data workers have their rank's environment, but not its parent.
        if is_rank and mark in variables and f"RANK={rank}".encode() in variables:
            with open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rsplit(")", 1)[1].split()[1])
            if parent == int(os.environ["RETROFLOW_LAUNCHED"]):
                return int(name)
    raise ProcessLookupError(rank)


def _worker():
    """A data worker: a child of this process with the same command line."""
    with open("/proc/self/cmdline", "rb") as file:
        own = file.read()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rsplit(")", 1)[1].split()[1])
            with open(f"/proc/{name}/cmdline", "rb") as file:
                if parent == os.getpid() and file.read() == own:
                    return int(name)
        except OSError:
            continue
    raise ProcessLookupError("a data worker")


def _wait_until_told(number):
    """Wait for the launcher to pass its signal on, or to take this rank with it: until then it would be chance how far it comes."""
    deadline = time.monotonic() + _UNTIL_ENDED
    while time.monotonic() < deadline:
        requests = getattr(signal.getsignal(number), "__self__", None)
        if getattr(requests, "is_requested", False):
            return
        time.sleep(0.01)


def _install(rank, file, action, argument=None, when="before"):
    launched = int(os.environ.get("RETROFLOW_LAUNCHED", os.getpid()))
    if os.environ.get("RANK", "-") != rank:
        return
    replace = os.replace

    def replace_or_fail(source, target, **options):
        if str(target).endswith(file):
            os.replace = replace
            if when == "after":
                replace(source, target, **options)
            if action == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if action in ("kill", "suspend"):
                os.kill(_process_of(argument), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
                if action == "kill" and argument != rank:
                    time.sleep(_UNTIL_ENDED)
            elif action == "worker":
                os.kill(_worker(), signal.SIGKILL)
            else:
                number = getattr(signal, action)
                os.kill(launched, number)
                if launched != os.getpid():
                    _wait_until_told(number)
            if when == "after":
                return None
        return replace(source, target, **options)

    os.replace = replace_or_fail


if "FAULT" in os.environ:
    _install(*os.environ["FAULT"].split())
