"""How much memory training needs on each device, by formula: planning/costs.py for activations, the rest here.

With P parameters over s shards (FSDP; else s = 1), AdamW in float32 keeps 16 P / s bytes: the weight, its gradient and
two means. A frozen parameter keeps 4 bytes. bf16 autocast adds a copy of every weight in 2 bytes until its backward
pass; DDP adds a second set of gradients in its buckets. FSDP gathers the current and the next unit, in 2 bytes for
bf16, and parameters outside units, in 4 bytes plus bf16's copy. CUDA, NCCL and the allocator (1 to 3 GiB) are not
included.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from retroflow.model.config import RetroConfig
from retroflow.planning.costs import activation_bytes, logits_bytes

_STATE_BYTES, _WEIGHT_BYTES = 16, 4
_GIB = 1 << 30


@dataclass(frozen=True)
class DeviceWork:
    """The work of one device at one time.

    Attributes:
        sequences: of a forward pass.
        length: tokens of a sequence.
        num_neighbours: of a chunk; 0 without retrieval.
        bf16: whether matrix products run in bfloat16.
        shards: devices over which weights, gradients and optimizer states are divided; 1 without FSDP.
        buckets: whether DDP reduces gradients.
        checkpointing: whether layers are recomputed in the backward pass.
    """

    sequences: int
    length: int
    num_neighbours: int
    bf16: bool
    shards: int = 1
    buckets: bool = False
    checkpointing: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device.

    Attributes:
        states: weights, gradients and optimizer states, or this device's shard of them.
        copies: weights in bfloat16, DDP's buckets, FSDP's gathered units.
        activations: kept for the backward pass; None for models without a formula.
        logits: that exist at one time.
    """

    states: int
    copies: int
    activations: int | None = None
    logits: int = 0

    @property
    def of_model(self) -> int:
        """Bytes that do not depend on the batch."""
        return self.states + self.copies

    @property
    def total(self) -> int:
        """Sum of all known parts."""
        return self.of_model + (self.activations or 0) + self.logits

    @property
    def is_complete(self) -> bool:
        """Whether there is a formula for every part."""
        return self.activations is not None

    def __str__(self) -> str:
        parts = (
            ("weights, gradients and AdamW", self.states),
            ("copies of weights", self.copies),
            ("activations", self.activations),
            ("logits", self.logits),
        )
        listed = ", ".join(f"{size_text(size)} {what}" for what, size in parts if size)
        if not self.is_complete:
            listed += "; activations are unknown for this kind of model"
        return f"{'about' if self.is_complete else 'at least'} {size_text(self.total)} per device: {listed}"


def estimate_memory(
    config: RetroConfig, sizes: Mapping[str, int], work: DeviceWork, *, frozen: Collection[str] = ()
) -> MemoryEstimate:
    """Estimate the memory of a device.

    Args:
        config: the model.
        sizes: numbers in each parameter, by name.
        work: of the device.
        frozen: names of parameters that are not trained.
    """
    value_bytes = 2 if work.bf16 else 4
    activations = activation_bytes(
        config, work.length, work.num_neighbours, value_bytes=value_bytes, checkpointing=work.checkpointing
    )
    return replace(
        estimate_states(sizes, work, frozen=frozen),
        activations=work.sequences * activations,
        logits=logits_bytes(config, work.sequences * work.length, value_bytes=value_bytes),
    )


def estimate_states(sizes: Mapping[str, int], work: DeviceWork, *, frozen: Collection[str] = ()) -> MemoryEstimate:
    """Estimate everything but activations and logits; arguments as in `estimate_memory`."""
    num_parameters = sum(sizes.values())
    num_trained = sum(size for name, size in sizes.items() if name not in frozen)
    copies = 0
    if work.shards > 1:
        units, rest = _gathered(sizes)
        copies = (2 if work.bf16 else 4) * units + (6 if work.bf16 else 4) * rest
    elif work.bf16:
        copies = 2 * num_parameters
    if work.buckets:
        copies += _WEIGHT_BYTES * num_trained
    states = _STATE_BYTES * num_trained + _WEIGHT_BYTES * (num_parameters - num_trained)
    return MemoryEstimate(states=-(-states // work.shards), copies=copies)


def _gathered(sizes: Mapping[str, int]) -> tuple[int, int]:
    """Return the parameters that FSDP gathers on a device: two blocks of decoder or encoder; and those in no block."""
    units: dict[str, int] = {}
    for name, size in sizes.items():
        before, blocks, after = name.removeprefix("encoder.").partition("blocks.")
        unit = "" if before or not blocks else name.removesuffix(after) + after.split(".")[0]
        units[unit] = units.get(unit, 0) + size
    root = units.pop("", 0)
    return sum(sorted(units.values())[-2:]), root


def size_text(num_bytes: float) -> str:
    """Format bytes for people."""
    if num_bytes >= _GIB / 10:
        return f"{num_bytes / _GIB:,.1f} GiB"
    return f"{num_bytes / (1 << 20):.0f} MiB" if num_bytes >= 1 << 20 else f"{num_bytes / (1 << 10):.0f} KiB"
