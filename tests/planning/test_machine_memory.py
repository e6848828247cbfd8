"""How much memory there is: the machine's, a container's or a job's limit, and each process's share of it."""

import os
from dataclasses import replace

import pytest

from retroflow.distributed.ranks import ALONE
from retroflow.planning import machine_memory as module
from retroflow.planning.machine_memory import machine_memory
from retroflow.planning.options import TrainerOptions
from retroflow.planning.placement import place

ONE = place(TrainerOptions(device="cpu"), ALONE)
GIB = 1 << 30


def test_it_is_what_the_system_says_at_most():
    found = machine_memory(ONE)
    assert 0 < found.total <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < found.free <= found.total


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine of 64 GiB, 48 of them free, in whose control groups files can be put."""

    class FakePath(type(tmp_path)):
        def read_text(self, *args, **options):
            stand_in = tmp_path / str(self).lstrip("/")
            return type(tmp_path).read_text(stand_in if str(self).startswith("/proc") else self, *args, **options)

    def put(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    put("proc/meminfo", f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {48 << 20} kB\n")
    monkeypatch.setattr(module, "Path", FakePath)
    monkeypatch.setattr(module, "_CONTROL_GROUPS", tmp_path / "groups")
    return put


def test_a_limit_above_this_processs_group_counts_and_its_page_cache_is_free(system):
    system("proc/self/cgroup", "0::/slurm/job_5/step_0\n")
    system("groups/memory.max", "max\n")
    system("groups/slurm/job_5/memory.max", f"{8 * GIB}\n")
    system("groups/slurm/job_5/memory.current", f"{7 * GIB}\n")
    system("groups/slurm/job_5/memory.stat", f"anon 5\ninactive_file {3 * GIB}\n")
    system("groups/slurm/job_5/step_0/memory.max", "max\n")
    found = machine_memory(ONE)
    assert (found.total, found.free) == (8 * GIB, 4 * GIB)


def test_the_first_version_of_control_groups_is_read_too(system):
    system("proc/self/cgroup", "9:cpu:/x\n4:memory:/docker/abc\n0::/\n")
    system("groups/memory/memory.limit_in_bytes", "9223372036854771712\n")
    system("groups/memory/docker/abc/memory.limit_in_bytes", f"{16 * GIB}\n")
    system("groups/memory/docker/abc/memory.usage_in_bytes", f"{6 * GIB}\n")
    found = machine_memory(ONE)
    assert (found.total, found.free) == (16 * GIB, 10 * GIB)


def test_processes_of_one_machine_share_its_memory(system):
    found = machine_memory(replace(ONE, devices=4, nodes=2, strategy="ddp"))
    assert (found.total, found.free, found.what) == (16 * GIB, 12 * GIB, "of memory, divided over 4 processes")


def test_a_system_that_does_not_tell_is_not_guessed_at(system):
    system("proc/meminfo", "nothing of use\n")
    assert machine_memory(ONE) is None


def test_a_gpu_that_is_not_here_is_not_known(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert machine_memory(replace(ONE, accelerator="cuda")) is None


@pytest.mark.parametrize("devices", [1, 2])
def test_a_gpus_memory_is_its_own(monkeypatch, devices):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Card")
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (5 * GIB, 8 * GIB))
    card = type("Properties", (), {"total_memory": 8 * GIB})
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: card)
    found = machine_memory(replace(ONE, accelerator="cuda", devices=devices))
    assert (found.total, found.what) == (8 * GIB, "on a Card")
    assert found.free == (5 * GIB if devices == 1 else None)
