"""Kill a run at random moments, go on each time with the same command, and compare its end with an unbroken run.

Run as: python -m tests.distributed.kill_at_random FOLDER KILLS [KEY=VALUE ...], for example with
trainer.strategy=fsdp trainer.devices=2. Each kill is SIGKILL to one process of the command chosen at random, the
launcher and data workers among them; after it no process may be left.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from tests.distributed.conftest import EXACT
from tests.distributed.runs import LIMIT, assert_same, fit, launch, prepared_folder, processes_of

SLOWER = ("trainer.checkpoint_every=1", "trainer.log_every=1")
"""Makes checkpoints a large part of the time, so that many kills meet one."""


def kill_once(folder, words, draw, longest):
    """Start the command and kill something; returns how it ended, and how long it may take to end by itself."""
    started, began = launch(folder, *words, "--resume"), time.monotonic()
    deadline = began + draw.uniform(0.2, 1.0) * longest
    while time.monotonic() < deadline and started.process.poll() is None:
        time.sleep(0.01)
    processes = processes_of(started.mark)
    victim = draw.choice(processes) if processes else None
    if victim is not None:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            victim = None
    ended = started.finish(LIMIT)
    left = ended.leftovers()
    if left:
        raise AssertionError(f"left over: {[Path(f'/proc/{p}/cmdline').read_bytes() for p in left]}")
    return ended, longest if victim is not None else time.monotonic() - began


def main(folder, kills, words):
    """See the module."""
    draw = random.Random(kills)
    folder.mkdir(parents=True, exist_ok=True)
    prepared_folder(folder)
    words = (*words, *EXACT, *SLOWER)
    began = time.monotonic()
    unbroken = fit(folder, *words, "trainer.runs_folder=unbroken")
    assert unbroken.code == 0, unbroken.errors
    longest = time.monotonic() - began
    codes = []
    broken = 0
    while len(codes) < kills:
        runs = f"broken-{broken}"
        broken += 1
        while len(codes) < kills:
            ended, longest = kill_once(folder, (*words, f"trainer.runs_folder={runs}"), draw, longest)
            codes.append(ended.code)
            finished = list((folder / runs).glob("tiny/*/report.json"))
            print(f"kill {len(codes)}: exit code {ended.code}{', finished' if finished else ''}", flush=True)
            if finished:
                break
        ended = fit(folder, *words, f"trainer.runs_folder={runs}", "--resume") if not finished else ended
        assert (folder / runs / "tiny/0001/report.json").exists(), ended.errors
        assert_same(folder, "unbroken", runs)
        print(f"{runs}: the same as unbroken", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), tuple(sys.argv[3:])))
