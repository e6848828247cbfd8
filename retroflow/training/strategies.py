"""Where and in which precision a model is trained: the one place that turns trainer options into Lightning's words."""

from dataclasses import dataclass

import torch

from retroflow.errors import RecipeError
from retroflow.training.options import TrainerOptions


@dataclass(frozen=True)
class Placement:
    """What Lightning is told about the machine.

    Attributes:
        accelerator: "cpu" or "cuda".
        strategy: Lightning's strategy; one process for now.
        devices: processes of this machine.
        precision: Lightning's precision word, "32-true" or "bf16-mixed".
    """

    accelerator: str
    strategy: str
    devices: int
    precision: str

    @property
    def device(self) -> torch.device:
        """The device of a single process."""
        return torch.device(self.accelerator)

    @property
    def uses_bf16(self) -> bool:
        """Whether matrix products run in bfloat16."""
        return self.precision == "bf16-mixed"


def place(options: TrainerOptions) -> Placement:
    """Choose device and precision.

    Raises:
        RecipeError: `trainer.device` is "cuda" and torch sees no GPU.
    """
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            "trainer.device is 'cuda' but torch finds no CUDA device; use trainer.device=cpu, or a machine with a GPU "
            "and a CUDA build of torch"
        )
    bf16 = bf16_pays(device) if options.precision == "auto" else options.precision == "bf16"
    return Placement(accelerator=device, strategy="auto", devices=1, precision="bf16-mixed" if bf16 else "32-true")


def bf16_pays(device: str) -> bool:
    """Whether bfloat16 autocast is faster than float32 here, judged by the hardware's instructions alone.

    On CPUs it takes matrix units or AVX-512 BF16: 1.7 times per training step with AMX, slower than float32 where
    bfloat16 is emulated. Not timed at start: a run and its resumption must decide alike.
    """
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
