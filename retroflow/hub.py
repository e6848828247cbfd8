"""Files of Hugging Face: from the cache on this machine, else from the hub."""

import textwrap
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

HUB_SECONDS = 10.0
"""For the first answer of the hub; most calls of its library would ask again and again, for half a minute."""


def files_on_hub(model: str) -> list[str]:
    """Return the names of a model's files on the hub; asks once.

    Raises:
        Exception: there is no such model, or no network; classes of huggingface_hub and of httpx.
    """
    from huggingface_hub import HfApi

    return [file.rfilename for file in HfApi().model_info(model, timeout=HUB_SECONDS).siblings or ()]


def from_cache_or_hub(load: Callable[[bool], T]) -> tuple[T, str]:
    """Load from the first place that has it.

    Args:
        load: called with `local_files_only`, True first; whatever it raises means that it is not there.

    Returns:
        What was loaded, and the name of the place.

    Raises:
        LookupError: it is in neither; the message says why, for each.
    """
    failures = []
    for place, local_files_only in (("Hugging Face cache", True), ("Hugging Face hub", False)):
        try:
            return load(local_files_only), place
        # huggingface_hub raises its own classes, OSError, ValueError (a malformed name) and unwrapped ones of httpx.
        except Exception as error:
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
            failures.append(f"{place}: {reason}")
    raise LookupError("; ".join(failures))
