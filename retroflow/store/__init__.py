"""Every file on disk: artifacts with manifests, block writers, and the memory-mapped stores that read them."""
