"""A function in two processes that are a gloo group, neither of which outlives the call."""

import os
import time

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed.device_mesh import init_device_mesh

LIMIT = 300  # seconds; importing torch and transformers takes ten of them on a busy machine


def in_two(function, *arguments, folder):
    """Call function(rank, mesh, *arguments), which must be importable, on both ranks; raises what one of them raises.

    `folder` is an empty one where they meet.
    """
    started = torch.multiprocessing.spawn(
        _as_rank, (function, arguments, str(folder / "meeting")), nprocs=2, join=False, daemon=True
    )
    deadline = time.monotonic() + LIMIT
    try:
        while not started.join(timeout=1.0):
            if time.monotonic() > deadline:
                raise AssertionError(f"{function.__name__} has not ended after {LIMIT} s")
    finally:
        for process in started.processes:
            process.kill()
            process.join()


def _as_rank(rank, function, arguments, meeting):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    function(rank, init_device_mesh("cpu", (2,)), *arguments)
    dist.destroy_process_group()
    # Not through the interpreter's end, where a thread that torch still has aborted a rank (seen once, SIGABRT).
    os._exit(0)
