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
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class MachineMemory:
    """Memory of one device, or one process's part of the machine's.

    Attributes:
        total: bytes in total.
        free: bytes that are not in use now, None if unknown.
        what: name of the memory in messages.
    """

    total: int
    free: int | None
    what: str


def machine_memory(placement: Placement) -> MachineMemory | None:
    """Return the memory of each process of a training; None if there is no such device or it is unknown."""
    if placement.accelerator == "cuda":
        return _gpu(placement)
    found = main_memory()
    if found is None:
        return None
    total, free = found
    processes = placement.devices
    share = f", divided over {processes} processes" if processes > 1 else ""
    return MachineMemory(total // processes, free // processes, f"of memory{share}")


def _gpu(placement: Placement) -> MachineMemory | None:
    if not torch.cuda.is_available():
        return None
    what = f"on a {torch.cuda.get_device_name()}"
    if placement.world_size > 1:
        # Reading a GPU's free memory uses some of it, and another process may be the one that trains.
        return MachineMemory(int(torch.cuda.get_device_properties(0).total_memory), None, what)
    free, total = torch.cuda.mem_get_info()
    return MachineMemory(total, free, what)


def main_memory() -> tuple[int, int] | None:
    """Return the bytes of memory that this process can have, and the free ones; None if unknown."""
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
    """Yield limits of this process's control groups (containers, SLURM), and what is left of them."""
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
        with suppress(OSError, ValueError):  # no such file, or it contains "max"
            most = int((folder / limit).read_text())
            if most < _UNLIMITED:
                yield most, max(0, most - int((folder / usage).read_text()) + _value_of(folder / "memory.stat", cache))


def _value_of(path: Path, key: str) -> int:
    """Return a number from a file of lines "key number ...", 0 if it is missing."""
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            name, *values = line.split()
            if name == key:
                return int(values[0])
    return 0


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reset_peak() -> None:
    """Let the kernel's peak of this process's resident memory start again, where it can."""
    with suppress(OSError):
        _RESET.write_text("5")


def peak_memory() -> int | None:
    """Return the largest resident memory of this process in bytes since the reset; None if the system does not tell."""
    return _own_bytes("VmHWM")


def resident_memory() -> int | None:
    """Return the resident memory of this process in bytes; None if the system does not tell."""
    return _own_bytes("VmRSS")


def _own_bytes(key: str) -> int | None:
    found = _value_of(_STATUS, f"{key}:")
    return found * 1024 or None
