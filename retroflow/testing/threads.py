"""Calls made by several threads at once, in an order that shows what they share."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

PAUSE_SECONDS = 2e-5


def run_at_once(jobs: Sequence[Callable[[], None]], component: type, *, times: int) -> BaseException | None:
    """Run each job in a thread of its own, so many times; return what the first that failed raised.

    Every second time, threads pause at each line of the component's own Python code, for what is kept on the instance
    between two lines is seldom overwritten by itself.

    Args:
        jobs: what the threads do.
        component: whose package's lines are paused at.
        times: how often each job runs.
    """
    faults: list[BaseException] = []
    together = threading.Barrier(len(jobs))
    packages = {each.__module__.partition(".")[0] for each in component.__mro__} - {"builtins", "typing"}

    def pause(frame: FrameType, event: str, argument: Any) -> Any:
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in packages:
            return None
        if event == "line":
            time.sleep(PAUSE_SECONDS)
        return pause

    def repeat(job: Callable[[], None]) -> None:
        together.wait()
        try:
            for number in range(times):
                sys.settrace(None if number % 2 else pause)
                job()
        except BaseException as error:  # a thread's exception would be printed and forgotten
            faults.append(error)
        finally:
            sys.settrace(None)

    threads = [threading.Thread(target=repeat, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return faults[0] if faults else None
