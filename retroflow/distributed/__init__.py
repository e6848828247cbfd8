"""Processes that train together: ranks, launching, stop signals; torch without Lightning."""
