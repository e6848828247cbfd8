"""Files on disk: artifacts with manifests, block writers, and the memory-mapped stores that read them."""

import sys

from retroflow.errors import RetroflowError

if sys.platform == "win32":
    raise RetroflowError(
        "retroflow does not run on Windows: it reads and writes with pread and pwrite and makes renames durable by "
        "syncing folders, which Windows has not. Run it under WSL 2, or on Linux or macOS."
    )
