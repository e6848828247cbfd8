"""Where to compute, and in which precision: what "auto" means for every option called device or precision."""

from retroflow.errors import UsageError

NO_CUDA = 'is "cuda", but torch finds no CUDA device here; use "auto" or "cpu"'


def choose_device(wanted: str, key: str) -> str:
    """Return "cuda" or "cpu".

    Args:
        wanted: "auto" (a GPU if there is one), "cpu" or "cuda".
        key: the option, for the message.

    Raises:
        UsageError: "cuda" on a machine without a GPU, or with a build of torch that finds none.
    """
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UsageError(f"{key} {NO_CUDA}.")
    return "cuda" if available and wanted != "cpu" else "cpu"


def bf16_pays(device: str) -> bool:
    """Return whether bfloat16 is faster than float32 here, from the hardware's instructions.

    On CPUs it needs matrix units or AVX-512 BF16: 1.7 times as fast per training step with AMX, slower than float32 if
    bfloat16 is emulated. It is not timed, since a run and its resumption must choose the same.

    Args:
        device: "cuda" or "cpu".
    """
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
