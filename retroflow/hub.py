"""Files of Hugging Face: from the cache on this machine, else from the hub."""

import textwrap
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


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
