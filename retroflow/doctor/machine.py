"""Whether this machine can prepare, train and track: the checks of `retroflow doctor`.

Nothing is left behind: one file is written and removed in the folder for runs. The network is not used.
"""

import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from packaging.requirements import Requirement

from retroflow.components import KINDS
from retroflow.devices import bf16_pays
from retroflow.distributions import unreadable
from retroflow.doctor.components import Loaded
from retroflow.planning.machine_memory import available_cores
from retroflow.store.disk import disk_size, nearest_existing
from retroflow.version import __version__

State = Literal["ok", "note", "problem"]

LITTLE_DISK, LOW_DISK = 1e9, 10e9
LITTLE_SHARED, LOW_SHARED = 64 << 20, 1 << 30
FEW_FILES = 1024

_ONE_OF = {"faiss": "faiss-cpu", "faiss-gpu": "faiss-gpu"}
"""Extras whose distributions install the same module."""


@dataclass(frozen=True)
class Check:
    """The result of a check.

    Attributes:
        name: what was checked.
        state: "ok"; "note" for a limitation; "problem" for what has to be solved.
        text: the result.
        remedy: what to do, empty if nothing.
    """

    name: str
    state: State
    text: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        """As JSON values."""
        return asdict(self)


def check_machine(folder: Path, loaded: Callable[[], Iterable[Loaded]]) -> Iterator[Check]:
    """Run all checks; one that raises is a problem and does not stop the others.

    Args:
        folder: for runs and artifacts.
        loaded: returns the result of loading each component; called last.
    """
    checks: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("versions", _versions),
        ("extras", _extras),
        ("processor", _processor),
        ("GPU", _gpus),
        ("processes", _processes),
        ("shared memory", _shared_memory),
        ("folder", lambda: _folder(folder)),
        ("temporary folder", lambda: _temporary_folder(folder)),
        ("open files", _open_files),
        ("compiler", _compiler),
        ("components", lambda: _components(loaded())),
        ("plugins", _plugins),
    )
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:
            yield Check(name, "problem", f"the check failed: {type(error).__name__}: {error}")


def _versions() -> Iterator[Check]:
    yield Check("retroflow", "ok", f"{__version__}, Python {sys.version.split()[0]}")
    found, missing = _installed(_required(""))
    yield Check("versions", "ok", ", ".join(found))
    if missing:
        yield Check("versions", "problem", f"{', '.join(missing)} not installed", "pip install retroflow")


def _extras() -> Iterator[Check]:
    for extra in sorted(metadata.metadata("retroflow").get_all("Provides-Extra") or ()):
        if extra in ("all", "all-gpu", "dev"):
            continue
        found, missing = _installed(_required(extra))
        if missing and extra in _ONE_OF and _installed(list(_ONE_OF.values()))[0]:
            continue
        if missing:
            remedy = f'pip install "retroflow[{extra}]", if you need it'
            yield Check(f"extra {extra}", "note", f"{', '.join(missing)} not installed", remedy)
        else:
            yield Check(f"extra {extra}", "ok", ", ".join(found))
    both, _ = _installed(list(_ONE_OF.values()))
    if len(both) > 1:
        remedy = f"pip uninstall {' '.join(_ONE_OF.values())}, then install one of them"
        yield Check("extras", "problem", f"{' and '.join(both)} write over each other", remedy)


def _required(extra: str) -> list[str]:
    """Return the distributions that retroflow, or one of its extras, needs."""
    requirements = [Requirement(line) for line in metadata.requires("retroflow") or ()]
    others = [each for each in requirements if each.name != "retroflow"]
    return [each.name for each in others if _is_for(each, extra) and not (extra and _is_for(each, ""))]


def _is_for(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _installed(names: list[str]) -> tuple[list[str], list[str]]:
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    return found, missing


def _processor() -> Iterator[Check]:
    bf16 = "bf16 is faster on it" if bf16_pays("cpu") else "no AMX or AVX-512 BF16: fp32 is faster on it"
    yield Check("processor", "ok", f"{available_cores()} cores, {bf16}")


def _gpus() -> Iterator[Check]:
    if not torch.cuda.is_available():
        if _has_driver():
            yield Check(
                "GPU",
                "problem",
                f"there is an NVIDIA driver, but torch {torch.__version__} finds no GPU",
                "install a CUDA build of torch that fits the driver (pytorch.org/get-started); check "
                "CUDA_VISIBLE_DEVICES and, in a container, --gpus",
            )
        else:
            yield Check("GPU", "note", "none; training runs on the processor")
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        with torch.cuda.device(number):
            free, total = torch.cuda.mem_get_info()
            computed = float(torch.ones(64, 64, device="cuda").matmul(torch.ones(64, 64, device="cuda")).sum())
        bf16 = bf16_pays("cuda")
        text = f"{properties.name}, {total / 2**30:.0f} GiB ({free / 2**30:.0f} free), bf16 {'yes' if bf16 else 'no'}"
        if computed != 64**3:
            yield Check(f"GPU {number}", "problem", f"{text}; its results are wrong", "do not use it")
        elif free < total / 2:
            yield Check(f"GPU {number}", "note", f"{text}; another process uses it")
        else:
            yield Check(f"GPU {number}", "ok", text)


def _has_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _processes() -> Iterator[Check]:
    if not dist.is_available() or not dist.is_gloo_available():
        yield Check("processes", "problem", "torch has no gloo: DDP and FSDP cannot run", "install another torch")
        return
    with tempfile.TemporaryDirectory() as folder:
        store, limit = f"file://{Path(folder) / 'store'}", timedelta(seconds=20)
        try:
            dist.init_process_group("gloo", init_method=store, rank=0, world_size=1, timeout=limit)
            dist.destroy_process_group()
        except RuntimeError as error:
            yield Check(
                "processes",
                "problem",
                f"gloo cannot make a process group: {str(error).splitlines()[0]}",
                "make the machine's name resolve (/etc/hosts), or set GLOO_SOCKET_IFNAME",
            )
            return
    yield Check("processes", "ok", "gloo works")
    if dist.is_nccl_available():
        version = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        yield Check("NCCL", "ok", version)
    else:
        state: State = "problem" if torch.cuda.device_count() > 1 else "note"
        yield Check("NCCL", state, "torch is built without it, so several GPUs cannot work together")


def _shared_memory() -> Iterator[Check]:
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return
    free = shutil.disk_usage(shared).free
    text, remedy = f"{disk_size(free)} free in {shared}", "in a container: --shm-size=8g, or --ipc=host"
    if free < LITTLE_SHARED:
        yield Check("shared memory", "problem", f"{text}: data workers and NCCL will fail", remedy)
    elif free < LOW_SHARED:
        yield Check("shared memory", "note", f"{text}: little for NCCL and for many data workers", remedy)
    else:
        yield Check("shared memory", "ok", text)


def _folder(folder: Path) -> Iterator[Check]:
    existing = nearest_existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".retroflow-doctor-") as file:
            file.write(b"whole or not at all")
            file.flush()
            os.fsync(file.fileno())
            moved = f"{file.name}.moved"
            os.replace(file.name, moved)
            os.replace(moved, file.name)
    except OSError as error:
        yield Check("folder", "problem", f"{existing} cannot be written ({error})", "choose another, or free space")
        return
    free = shutil.disk_usage(existing).free
    text = f"{existing} can be written, {disk_size(free)} free"
    remedy = "retroflow fit --dry-run says what a recipe needs"
    if free < LITTLE_DISK:
        yield Check("folder", "problem", text, f"free space; {remedy}")
    else:
        yield Check("folder", "note" if free < LOW_DISK else "ok", text, remedy if free < LOW_DISK else "")


def _temporary_folder(folder: Path) -> Iterator[Check]:
    existing = nearest_existing(folder)
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield Check("temporary folder", "problem", f"none can be written ({error})", "set TMPDIR")
        return
    text = f"{temporary}, {disk_size(shutil.disk_usage(temporary).free)} free"
    if temporary.stat().st_dev == existing.stat().st_dev:
        yield Check("temporary folder", "ok", f"{text}, on the filesystem of {existing}")
    else:
        # No file of ours is moved from there: artifacts and checkpoints are written beside their final path.
        yield Check("temporary folder", "ok", f"{text}, on another filesystem than {existing}, which does no harm")


def _open_files() -> Iterator[Check]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    state: State = "note" if soft < FEW_FILES else "ok"
    yield Check("open files", state, f"at most {soft:,}", "ulimit -n 4096" if state == "note" else "")


def _compiler() -> Iterator[Check]:
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if found is None:
        yield Check("compiler", "note", "no C++ compiler: trainer.compile and hnswlib's installation need one")
    else:
        yield Check("compiler", "ok", f"{found}, for trainer.compile")


def _components(loaded: Iterable[Loaded]) -> Iterator[Check]:
    for one in loaded:
        name = f"{one.kind} {one.name}"
        if one.error is None:
            yield Check(name, "ok", f"loads, from {one.owner}")
        else:
            yield Check(name, "note" if one.is_optional else "problem", one.error)


def _plugins() -> Iterator[Check]:
    """Report installed plugins that are ignored; a note, because no recipe has named them yet."""
    for sentence in (*unreadable(), *(sentence for registry in KINDS for sentence in registry.passed_over())):
        yield Check("plugins", "note", sentence)


def to_json(checks: list[Check]) -> str:
    """Return one JSON object: whether there is no problem, and every check."""
    values: dict[str, Any] = {
        "ok": not any(check.state == "problem" for check in checks),
        "checks": [check.to_json() for check in checks],
    }
    return json.dumps(values)
