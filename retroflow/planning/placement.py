"""Choose device, processes and precision of a training."""

from dataclasses import dataclass

import torch

from retroflow.devices import bf16_pays, choose_device
from retroflow.distributed.ranks import Ranks
from retroflow.errors import UsageError
from retroflow.planning.options import TrainerOptions


@dataclass(frozen=True)
class Placement:
    """Device, processes and precision of a training.

    Attributes:
        accelerator: "cpu" or "cuda".
        strategy: "single", "ddp" or "fsdp".
        devices: processes on each machine.
        nodes: machines.
        precision: Lightning's precision word, "32-true" or "bf16-mixed".
    """

    accelerator: str
    strategy: str
    devices: int
    nodes: int
    precision: str

    @property
    def world_size(self) -> int:
        """Number of processes on all machines."""
        return self.devices * self.nodes

    @property
    def device(self) -> torch.device:
        """The device of this process; under CUDA the current one, which every rank has set."""
        return torch.device(self.accelerator)

    @property
    def uses_bf16(self) -> bool:
        """Whether matrix products run in bfloat16."""
        return self.precision == "bf16-mixed"


def place(options: TrainerOptions, ranks: Ranks) -> Placement:
    """Choose device, precision and the number of processes.

    Raises:
        UsageError: the machine lacks the devices, the launcher has started other processes, or the batch cannot be
            divided.
    """
    device = choose_device(options.device, "trainer.device")
    return _placement(options, device, devices=_devices(options, ranks, device), nodes=_nodes(options, ranks))


def plan_placement(options: TrainerOptions) -> Placement:
    """Choose as `place` would on the recipe's machines, whatever this one has.

    Raises:
        UsageError: the batch cannot be divided.
    """
    device = choose_device(options.device, "trainer.device") if options.device == "auto" else options.device
    many = options.strategy != "auto" and device == "cuda"
    devices = options.devices or (max(1, torch.cuda.device_count()) if many else 1)
    return _placement(options, device, devices=devices, nodes=max(1, options.nodes))


def _placement(options: TrainerOptions, device: str, *, devices: int, nodes: int) -> Placement:
    world_size = devices * nodes
    if options.batch_size % (world_size * options.accumulate):
        raise UsageError(
            f"trainer.batch_size is {options.batch_size}, which cannot be divided over {world_size} processes x "
            f"trainer.accumulate {options.accumulate}; make it a multiple of {world_size * options.accumulate}."
        )
    strategy: str = options.strategy
    if strategy != "fsdp":
        strategy = "ddp" if world_size > 1 else "single"
    bf16 = bf16_pays(device) if options.precision == "auto" else options.precision == "bf16"
    return Placement(
        accelerator=device,
        strategy=strategy,
        devices=devices,
        nodes=nodes,
        precision="bf16-mixed" if bf16 else "32-true",
    )


def _nodes(options: TrainerOptions, ranks: Ranks) -> int:
    if options.nodes > 1 and not ranks.launcher:
        raise UsageError(
            f"trainer.nodes is {options.nodes}, but one command starts processes on its own machine only; start the "
            "same command on every machine with torchrun or srun (docs/multi-node.md)."
        )
    return _as_launched("trainer.nodes", options.nodes, ranks.num_nodes, "machines", ranks)


def _devices(options: TrainerOptions, ranks: Ranks, device: str) -> int:
    available = torch.cuda.device_count() if device == "cuda" else options.devices
    if ranks.launcher:
        wanted = _as_launched("trainer.devices", options.devices, ranks.local_size, "processes a machine", ranks)
    else:
        wanted = options.devices or (1 if options.strategy == "auto" else max(1, available))
    if device == "cuda" and wanted > available:
        raise UsageError(
            f"trainer.devices: {wanted} processes, but this machine has {available} GPUs; use "
            f"trainer.devices={available}"
        )
    return wanted


def _as_launched(key: str, given: int, launched: int, what: str, ranks: Ranks) -> int:
    if ranks.launcher and given and given != launched:
        raise UsageError(
            f"{key} is {given}, but {ranks.launcher} has started {launched} {what}; leave {key} out, or start {given}."
        )
    return launched if ranks.launcher else max(1, given)
