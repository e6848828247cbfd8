"""The thread that owns the model: it takes jobs from a queue, and computes one token of all that run at a time."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from retroflow.errors import RetroflowError
from retroflow.serving.measured import Measured
from retroflow.serving.running import Event, Job, RunningBatch


class QueueFull(RetroflowError):
    """More jobs wait than the server allows."""


class WorkerDied(RetroflowError):
    """The thread that computes has ended."""


class TimeIsUp(RetroflowError):
    """A job took longer than the server allows."""


class Worker:
    """Runs jobs, those that can together; a job waits for the end of a window, and never ends another.

    Args:
        batch: of this worker alone.
        most_running: jobs that are computed together.
        most_waiting: jobs that may wait beside them.
        measured: counts steps and tokens.
    """

    def __init__(self, batch: RunningBatch, *, most_running: int, most_waiting: int, measured: Measured) -> None:
        self.batch = batch
        self._most_running, self._most_waiting, self._measured = most_running, most_waiting, measured
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="retroflow-serve", daemon=True)

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; what runs or waits fails."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        with suppress(RuntimeError):  # it was never started
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether jobs are computed."""
        return self._thread.is_alive() and not self._is_closing

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, all of them or none.

        Raises:
            QueueFull: too many are waiting.
            WorkerDied: nothing is computed any more.
        """
        with self._changed:
            if not self.is_alive:
                raise WorkerDied("the model's thread has ended; restart the server.")
            if len(self._waiting) + len(jobs) > self._most_waiting:
                raise QueueFull(f"{len(self._waiting)} texts are waiting already; try again later.")
            self._waiting += jobs
            self._changed.notify()

    def _run(self) -> None:
        try:
            while self._is_wanted():
                self._drop()
                self._admit()
                self._step()
        except BaseException:
            logging.getLogger("retroflow").exception("serve: the thread that computes has ended")
        finally:
            self._end()

    def _is_wanted(self) -> bool:
        """Wait for work; return False at the end."""
        with self._changed:
            if not self._waiting and not len(self.batch):
                self._measured.idle()
            self._changed.wait_for(lambda: self._waiting or len(self.batch) or self._is_closing)
            return not self._is_closing

    def _drop(self) -> None:
        """Remove the jobs whose client has gone or whose time is up."""
        now = time.monotonic()
        with self._changed:
            ended = [job for job in (*self._waiting, *self.batch.jobs) if job.is_cancelled or job.deadline < now]
            self._waiting = deque(job for job in self._waiting if job not in ended)
        if not ended:
            return
        self.batch.leave(ended)
        for job in ended:
            if not job.is_cancelled:
                job.report(Event(error=TimeIsUp("the time limit of the server is reached; ask for fewer tokens.")))

    def _admit(self) -> None:
        """Let waiting jobs join, if a window has just ended; those that came meanwhile join, too.

        What runs waits for as many prompts as can run at most, however many end at once because they are only scored.
        """
        num_admitted = 0
        while self.batch.can_join and num_admitted < self._most_running:
            with self._changed:
                new: list[Job] = []
                while self._waiting and max(len(self.batch), num_admitted) + len(new) < self._most_running:
                    if not self.batch.has_room(self._waiting[0]):
                        break
                    new.append(self._waiting.popleft())
                    if self.batch.has_limit:
                        break
            if not new:
                return
            num_admitted += len(new)
            self._measured.tokens(sum(job.max_new_tokens > 0 for job in new))
            self.batch.join(new)
            self._drop()  # prompts take long, and clients leave meanwhile

    def _step(self) -> None:
        num_jobs, start = len(self.batch), time.perf_counter()
        if not num_jobs:
            return
        self._measured.tokens(num_jobs)
        try:
            self.batch.step()
        except Exception as error:  # of the retriever or the model: it may be any
            self.batch.fail(error)
        self._measured.step(num_jobs, len(self._waiting), time.perf_counter() - start)

    def _end(self) -> None:
        with self._changed:
            waiting, self._waiting = list(self._waiting), deque()
            self._is_closing = True  # known before anyone hears of it
        error = WorkerDied("the model's thread has ended; restart the server.")
        for job in waiting:
            job.report(Event(error=error))
        self.batch.fail(error)
