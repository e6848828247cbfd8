"""Where to compute: what "auto", "cpu" and "cuda" mean for every option called device."""

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
