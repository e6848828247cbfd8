"""The memory that each process of a training can have on this machine."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from retroflow.planning.placement import Placement

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class MachineMemory:
    """Memory of one device, or a process's share of the machine's.

    Attributes:
        total: bytes that there are at most.
        free: bytes that are not in use now, None where that is not known.
        what: which memory it is, for a message.
    """

    total: int
    free: int | None
    what: str


def machine_memory(placement: Placement) -> MachineMemory | None:
    """What each process of a training has here; None where this machine has no such device or does not tell."""
    if placement.accelerator == "cuda":
        return _gpu(placement)
    found = _ram()
    if found is None:
        return None
    total, free = found
    processes = placement.devices
    share = f", shared by {processes} processes" if processes > 1 else ""
    return MachineMemory(total // processes, free // processes, f"of memory{share}")


def _gpu(placement: Placement) -> MachineMemory | None:
    if not torch.cuda.is_available():
        return None
    what = f"on a {torch.cuda.get_device_name()}"
    if placement.world_size > 1:
        # Asking a GPU what is free takes some of its memory, and this process may not be the one that uses it.
        return MachineMemory(int(torch.cuda.get_device_properties(0).total_memory), None, what)
    free, total = torch.cuda.mem_get_info()
    return MachineMemory(total, free, what)


def _ram() -> tuple[int, int] | None:
    """Bytes of memory that this process can have, and those not in use; None on systems that do not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)}
        total, free = sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    for limit, unused in _limits():
        total, free = min(total, limit), min(free, unused)
    return total, free


def _limits() -> Iterator[tuple[int, int]]:
    """Limits of the control groups that this process is in (containers, SLURM), and what is left of them."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers == "":  # version 2
                yield from _limits_above(_CONTROL_GROUPS, name, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                yield from _limits_above(_CONTROL_GROUPS / "memory", name, *files)


def _limits_above(root: Path, name: str, limit: str, usage: str, cache: str) -> Iterator[tuple[int, int]]:
    group = PurePosixPath(name)
    for each in (group, *group.parents):
        folder = root / str(each).lstrip("/")
        with suppress(OSError, ValueError):  # there is no such file, or it says "max"
            most = int((folder / limit).read_text())
            if most < _UNLIMITED:
                yield most, max(0, most - int((folder / usage).read_text()) + _value_of(folder / "memory.stat", cache))


def _value_of(path: Path, key: str) -> int:
    """A number of a file of lines "key number", 0 if it is not there."""
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return 0


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
