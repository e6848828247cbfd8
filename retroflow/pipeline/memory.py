"""Memory between the stages: what one has freed is given back before the next one starts."""

import ctypes
import sys


def release_free_memory() -> None:
    """Return freed memory to the system; glibc keeps some 40 MB of an index build for allocations to come."""
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # musl has none
        library.malloc_trim(ctypes.c_size_t(0))
