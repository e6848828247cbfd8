"""Speed of a run: tokens per second, and model FLOPs utilisation (MFU).

MFU (Chowdhery et al. 2022, arXiv:2204.02311, appendix B) = FLOPs that the model's matrix products need / (seconds x
peak FLOP/s of all devices). The FLOPs are those of retroflow/planning/costs.py; recomputation in the backward pass does
not count. MFU is reported only if the peak is known.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

# Dense bfloat16 FLOP/s with float32 accumulation, without sparsity, from NVIDIA's data sheets. The first name that
# occurs as a word in the device's name is used.
PEAK_FLOPS = {
    "B200": 2.25e15,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "A40": 150e12,
    "A10G": 70e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops_of(device_name: str) -> float | None:
    """Return the peak dense bfloat16 FLOP/s of a GPU by its name; None if the table does not have it."""
    found = (peak for name, peak in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", device_name))
    return next(found, None)


@dataclass(frozen=True)
class Throughput:
    """Turns tokens and seconds into logged metrics.

    Attributes:
        step_flops: FLOPs of an optimizer step over all devices with retrieval, None if the model has no formula.
        step_flops_off: the same without retrieval.
        is_off: whether a step (from 0) trains without retrieval.
        peak_flops: FLOP/s of all devices together, None if unknown.
    """

    step_flops: float | None
    step_flops_off: float | None
    is_off: Callable[[int], bool]
    peak_flops: float | None

    def metrics(self, first_step: int, last_step: int, *, tokens: int, seconds: float) -> dict[str, float]:
        """Describe the steps first_step .. last_step - 1 (from 0), which took `seconds`.

        Returns:
            "seconds", "tokens_per_second" (predicted tokens, all devices), and if known
            "model_flops_per_second" and "mfu" (0 to 1).
        """
        seconds = max(1e-9, seconds)
        values = {"seconds": seconds, "tokens_per_second": tokens / seconds}
        if self.step_flops is not None and self.step_flops_off is not None:
            off = sum(self.is_off(step) for step in range(first_step, last_step))
            flops = off * self.step_flops_off + (last_step - first_step - off) * self.step_flops
            values["model_flops_per_second"] = flops / seconds
            if self.peak_flops and math.isfinite(mfu := flops / seconds / self.peak_flops):
                values["mfu"] = mfu
        return values
