"""Return memory that one stage has freed before the next one starts."""

import ctypes
import sys


def release_free_memory() -> None:
    """Return freed memory to the system; otherwise glibc keeps about 40 MB of an index build."""
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # musl does not have it
        library.malloc_trim(ctypes.c_size_t(0))
